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
    values[i] = static_cast<std::uint32_t>(i * 2654435761u) ^ static_cast<std::uint32_t>(rank << 20 | block);
  return values;
}

TEST_P(RingDevice, BlocksArriveWholeAndInOrder) {
  for (int count = 1; count <= comm.size(); ++count) {
    if (comm.size() % count != 0) continue;
    const Teams teams{count, comm.size() / count};
    const Ring ring = make_ring(comm, teams, stream);
    EXPECT_EQ(ring.to_next != nullptr, count > 1);
    EXPECT_EQ(ring.from_previous != nullptr, count > 1);
    if (count == 1) continue;
    const int previous = teams.rank_at(teams.previous(teams.team_of_rank(comm.rank())), teams.position_of_rank(comm.rank()));
    constexpr int blocks = 7;
    const auto words = [](int block) { return block == 3 ? std::size_t{1} : std::size_t{70000} + static_cast<std::size_t>(block); };
    // Ranks differ in speed, and a receiver may be early or late.
    std::vector<Buffer> sent;
    std::vector<Buffer> received;
    for (int b = 0; b < blocks; ++b) {
      const auto values = block_of(comm.rank(), b, words(b));
      sent.emplace_back(values.size() * sizeof(std::uint32_t), stream);
      copy_to_device(sent.back().data(), values.data(), sent.back().bytes(), stream);
      if ((comm.rank() + b) % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      ring.to_next->send(sent.back().data(), sent.back().bytes(), stream);
      received.emplace_back(sent.back().bytes(), stream);
      fill_zero(received.back().data(), received.back().bytes(), stream);
      ring.from_previous->receive(received.back().data(), received.back().bytes(), stream);
    }
    EXPECT_EQ(ring.to_next->under_way(), static_cast<std::size_t>(blocks));
    for (int b = 0; b < blocks; ++b) {
      ring.from_previous->wait_oldest();
      std::vector<std::uint32_t> values(words(b));
      copy_to_host(values.data(), received[static_cast<std::size_t>(b)].data(), received[static_cast<std::size_t>(b)].bytes(), stream);
      EXPECT_EQ(values, block_of(previous, b, words(b))) << "block " << b;
      ring.to_next->wait_oldest();
    }
    EXPECT_EQ(ring.to_next->under_way(), 0u);
    EXPECT_THROW(ring.to_next->wait_oldest(), std::invalid_argument);
    EXPECT_THROW(ring.to_next->receive(nullptr, 0, stream), std::invalid_argument);
    comm.barrier();
  }
}

TEST_P(RingDevice, ATransferWaitsForTheStreamsEarlierWork) {
  if (comm.size() < 2) return;
  const Teams teams{comm.size(), 1};
  const Ring ring = make_ring(comm, teams, stream);
  const std::size_t words = std::size_t{1} << 20;
  const Buffer first(words * 4, stream);
  const Buffer second(words * 4, stream);
  const Buffer arrived(words * 4, stream);
  const auto old_values = block_of(comm.rank(), 0, words);
  const auto values = block_of(comm.rank(), 1, words);
  copy_to_device(first.data(), old_values.data(), words * 4, stream);
  copy_to_device(second.data(), values.data(), words * 4, stream);
  for (int i = 0; i < 50; ++i) copy_on_device(first.data(), second.data(), words * 4, stream);  // queued, not done
  ring.to_next->send(first.data(), words * 4, stream);
  ring.from_previous->receive(arrived.data(), words * 4, stream);
  ring.from_previous->wait_oldest();
  ring.to_next->wait_oldest();
  std::vector<std::uint32_t> got(words);
  copy_to_host(got.data(), arrived.data(), words * 4, stream);
  EXPECT_EQ(got, block_of((comm.rank() + comm.size() - 1) % comm.size(), 1, words));
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
    for (int p = 0; p < teams.ranks_of_team; ++p) expected += teams.rank_at(teams.team_of_rank(comm.rank()), p) + 1;
    EXPECT_EQ(sum, expected);
    EXPECT_EQ(team.broadcast(std::to_string(comm.rank()), 0), std::to_string(teams.rank_at(teams.team_of_rank(comm.rank()), 0)));
    comm.barrier();
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RingDevice, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
