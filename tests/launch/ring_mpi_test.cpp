// Run with 1, 2, 3 and 4 ranks. On CUDA all ranks share device 0.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "launch/ring.h"
#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class RingDevice : public BackendTest {
 protected:
  Comm comm{stream, {std::chrono::seconds(120), true}};
};

std::vector<std::uint32_t> block_of(int rank, int block, std::size_t words) {
  std::vector<std::uint32_t> values(words);
  for (std::size_t i = 0; i < words; ++i)
    values[i] = static_cast<std::uint32_t>(i * 2654435761u) ^
                static_cast<std::uint32_t>(rank << 20 | block);
  return values;
}

TEST_P(RingDevice, BlocksArriveWholeAndInOrder) {
  for (int count = 2; count <= comm.size(); ++count) {
    if (comm.size() % count != 0) continue;
    const Teams teams{count, comm.size() / count};
    Ring ring(comm, teams, stream);
    const int previous = teams.rank_at(teams.previous(teams.team_of_rank(comm.rank())),
                                       teams.position_of_rank(comm.rank()));
    constexpr int blocks = 7;
    const auto words = [](int block) {
      return block == 3 ? std::size_t{1} : std::size_t{70000} + static_cast<std::size_t>(block);
    };
    // Ranks differ in speed, and a receiver may be early or late.
    std::vector<Buffer> sent;
    std::vector<Buffer> received;
    std::int64_t bytes = 0;
    for (int b = 0; b < blocks; ++b) {
      const auto values = block_of(comm.rank(), b, words(b));
      sent.emplace_back(values.size() * sizeof(std::uint32_t), stream);
      copy_to_device(sent.back().data(), values.data(), sent.back().bytes(), stream);
      if ((comm.rank() + b) % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      received.emplace_back(sent.back().bytes(), stream);
      fill_zero(received.back().data(), received.back().bytes(), stream);
      ring.exchange({sent.back().data(), sent.back().bytes()},
                    {received.back().data(), received.back().bytes()}, stream);
      bytes += 2 * static_cast<std::int64_t>(sent.back().bytes());
    }
    for (int b = 0; b < blocks; ++b) {
      ring.wait(static_cast<std::size_t>(blocks - 1 - b));
      EXPECT_LE(ring.under_way(), static_cast<std::size_t>(blocks - 1 - b));
      std::vector<std::uint32_t> values(words(b));
      copy_to_host(values.data(), received[static_cast<std::size_t>(b)].data(),
                   received[static_cast<std::size_t>(b)].bytes(), stream);
      EXPECT_EQ(values, block_of(previous, b, words(b))) << "block " << b;
    }
    EXPECT_EQ(ring.bytes(), bytes);
    comm.barrier();
  }
}

// As the stages of a pipeline: the first step has only a sender, the last only a receiver, and a
// block may go on from where it arrived.
TEST_P(RingDevice, StepsMayGoOneWayOrNowhere) {
  if (comm.size() < 2) return;
  Ring ring(comm, {comm.size(), 1}, stream);
  constexpr std::size_t words = 300000;
  const Buffer block(words * 4, stream);
  const bool first = comm.rank() == 0;
  if (first) copy_to_device(block.data(), block_of(0, 5, words).data(), words * 4, stream);
  for (int step = 0; step < comm.size() - 1; ++step) {
    Ring::Outgoing out;
    Ring::Incoming in;
    if (step == comm.rank()) out = {block.data(), words * 4};
    if (step == comm.rank() - 1) in = {block.data(), words * 4};
    ring.exchange(out, in, stream);
  }
  ring.wait(0);
  EXPECT_EQ(ring.under_way(), 0u);
  std::vector<std::uint32_t> got(words);
  copy_to_host(got.data(), block.data(), words * 4, stream);
  EXPECT_EQ(got, block_of(0, 5, words));
}

// Memory that a step sends may be received into by the next one.
TEST_P(RingDevice, AStepBeginsAfterTheOneBefore) {
  if (comm.size() < 2) return;
  Ring ring(comm, {comm.size(), 1}, stream);
  constexpr std::size_t words = 500000;
  const Buffer memory(words * 4, stream);
  copy_to_device(memory.data(), block_of(comm.rank(), 9, words).data(), words * 4, stream);
  const Buffer other(words * 4, stream);
  for (int step = 0; step < comm.size(); ++step) {  // once around, through two buffers in turn
    const Buffer& from = step % 2 == 0 ? memory : other;
    const Buffer& to = step % 2 == 0 ? other : memory;
    ring.exchange({from.data(), words * 4}, {to.data(), words * 4}, stream);
  }
  ring.wait(0);
  std::vector<std::uint32_t> got(words);
  copy_to_host(got.data(), (comm.size() % 2 == 0 ? memory : other).data(), words * 4, stream);
  EXPECT_EQ(got, block_of(comm.rank(), 9, words));
}

TEST_P(RingDevice, AStepWaitsForTheStreamsEarlierWork) {
  if (comm.size() < 2) return;
  Ring ring(comm, {comm.size(), 1}, stream);
  const std::size_t words = std::size_t{1} << 20;
  const Buffer first(words * 4, stream);
  const Buffer second(words * 4, stream);
  const Buffer arrived(words * 4, stream);
  const auto old_values = block_of(comm.rank(), 0, words);
  const auto values = block_of(comm.rank(), 1, words);
  copy_to_device(first.data(), old_values.data(), words * 4, stream);
  copy_to_device(second.data(), values.data(), words * 4, stream);
  for (int i = 0; i < 50; ++i)
    copy_on_device(first.data(), second.data(), words * 4, stream);  // queued, not done
  ring.exchange({first.data(), words * 4}, {arrived.data(), words * 4}, stream);
  ring.wait(0);
  std::vector<std::uint32_t> got(words);
  copy_to_host(got.data(), arrived.data(), words * 4, stream);
  EXPECT_EQ(got, block_of((comm.rank() + comm.size() - 1) % comm.size(), 1, words));
}

TEST_P(RingDevice, OneTeamIsNoRing) {
  EXPECT_THROW(Ring(comm, Teams{1, comm.size()}, stream), std::invalid_argument);
}

TEST_P(RingDevice, TeamsAreCommunicatorsOfTheirOwn) {
  for (int count = 1; count <= comm.size(); ++count) {
    if (comm.size() % count != 0) continue;
    const Teams teams{count, comm.size() / count};
    Comm team(comm, teams.team_of_rank(comm.rank()), stream);
    EXPECT_EQ(team.size(), teams.ranks_of_team);
    EXPECT_EQ(team.rank(), teams.position_of_rank(comm.rank()));
    Array<std::int64_t> x(1, 1, stream);
    const std::int64_t mine = comm.rank() + 1;
    copy_to_device(x.view.data, &mine, sizeof mine, stream);
    team.all_reduce_sum(x, stream);
    team.wait(stream);
    std::int64_t sum = 0;
    copy_to_host(&sum, x.view.data, sizeof sum, stream);
    std::int64_t expected = 0;
    for (int p = 0; p < teams.ranks_of_team; ++p)
      expected += teams.rank_at(teams.team_of_rank(comm.rank()), p) + 1;
    EXPECT_EQ(sum, expected);
    EXPECT_EQ(team.broadcast(std::to_string(comm.rank()), 0),
              std::to_string(teams.rank_at(teams.team_of_rank(comm.rank()), 0)));
    comm.barrier();
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RingDevice, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
