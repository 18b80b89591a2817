// Run with 1, 2, 3 and 4 ranks. On CUDA all ranks share device 0.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <future>
#include <limits>
#include <stdexcept>
#include <thread>

#include "kernels/copy_queue.h"
#include "kernels/system_fault.h"
#include "launch/comm.h"
#include "launch/mpi_calls.h"
#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

// A byte that depends on its owner and place.
unsigned char byte_of(std::int64_t rank, std::size_t place) {
  return static_cast<unsigned char>(31 * rank + 7 +
                                    static_cast<std::int64_t>(place * 2654435761u >> 13));
}

class CommDevice : public BackendTest {
 protected:
  Comm comm{stream, {std::chrono::seconds(120), true}};

  std::vector<unsigned char> download_bytes(const Buffer& buffer) {
    comm.wait(stream);
    std::vector<unsigned char> bytes(buffer.bytes());
    copy_to_host(bytes.data(), buffer.data(), bytes.size(), stream);
    return bytes;
  }
  Buffer upload_bytes(const std::vector<unsigned char>& bytes) {
    Buffer buffer(bytes.size(), stream);
    copy_to_device(buffer.data(), bytes.data(), bytes.size(), stream);
    return buffer;
  }
};

TEST_P(CommDevice, BroadcastFromEveryRank) {
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{1}, std::size_t{3}, std::size_t{4097}, std::size_t{5} << 20})
    for (int from = 0; from < comm.size(); ++from) {
      std::vector<unsigned char> mine(bytes);
      for (std::size_t i = 0; i < bytes; ++i) mine[i] = byte_of(comm.rank(), i);
      const Buffer buffer = upload_bytes(mine);
      comm.broadcast(buffer.data(), bytes, from, stream);
      const auto received = download_bytes(buffer);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < bytes; ++i) wrong += received[i] != byte_of(from, i);
      EXPECT_EQ(wrong, 0u) << bytes << " bytes from rank " << from;
    }
  EXPECT_THROW(comm.broadcast(nullptr, 0, comm.size(), stream), std::invalid_argument);
}

TEST_P(CommDevice, SumOfIntegersIsExact) {
  // Terms near 2^60, whose sums a double could not hold; a second reduction of the result shows
  // that operations keep their order.
  for (const std::int64_t rows : {1, 3, 1000}) {
    const std::int64_t cols = 257;
    const auto term = [](std::int64_t rank, std::int64_t i) {
      return (std::int64_t{1} << 60) / (rank + 2) * (i % 2 == 0 ? 1 : -1) + i * (rank + 1);
    };
    std::vector<std::int64_t> mine(static_cast<std::size_t>(rows * cols));
    for (std::size_t i = 0; i < mine.size(); ++i)
      mine[i] = term(comm.rank(), static_cast<std::int64_t>(i));
    const auto x = upload_as(mine, rows, cols);
    comm.all_reduce_sum(x, stream);
    comm.wait(stream);
    const auto wrong = [&](const std::vector<std::int64_t>& sums) {
      std::size_t count = 0;
      for (std::size_t i = 0; i < sums.size(); ++i) {
        std::int64_t expected = 0;
        for (int rank = 0; rank < comm.size(); ++rank)
          expected += term(rank, static_cast<std::int64_t>(i));
        count += sums[i] != expected;
      }
      return count;
    };
    EXPECT_EQ(wrong(download_as(x.view)), 0u) << rows << " rows";
    std::vector<Array<std::int64_t>> copies;
    std::vector<SumTo> sums;
    for (int to = 0; to < comm.size(); ++to) {
      copies.push_back(upload_as(mine, rows, cols));
      sums.push_back({copies.back().view, to});
    }
    comm.reduce_sums(sums, stream);
    comm.wait(stream);
    EXPECT_EQ(wrong(download_as(sums[static_cast<std::size_t>(comm.rank())].x)), 0u)
        << rows << " rows to " << comm.rank();
  }
  const auto wide = upload_as(std::vector<std::int64_t>(12, 1), 3, 4);
  EXPECT_THROW(comm.all_reduce_sum(wide.view.col_range(0, 2), stream), std::invalid_argument);
  EXPECT_THROW(comm.reduce_sums({{wide.view.col_range(0, 2), 0}}, stream), std::invalid_argument);
  EXPECT_THROW(comm.reduce_sums({{wide, comm.size()}}, stream), std::invalid_argument);
  comm.all_reduce_sum(Matrix<std::int64_t>(nullptr, 0, 4), stream);  // nothing to do
}

TEST_P(CommDevice, MaximumOfMagnitudesKeepsNan) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const float negative_nan = std::bit_cast<float>(0xffc00000u);  // what 0/0 gives on x86
  const float infinity = std::numeric_limits<float>::infinity();
  const float denormal = std::numeric_limits<float>::denorm_min();
  const int last = comm.size() - 1;
  const auto pick = [&](int rank, float at_rank, float elsewhere) {
    return comm.rank() == rank ? at_rank : elsewhere;
  };
  const std::vector<float> mine{
      static_cast<float>(comm.rank()),          // last
      static_cast<float>(-comm.rank() + last),  // last, from rank 0
      0.0f,
      pick(last, denormal, 0.0f),
      pick(0, nan, infinity),
      pick(last, negative_nan, 3.0f),
      pick(last, infinity, std::numeric_limits<float>::max()),
      1.0f + 0x1p-23f * static_cast<float>(comm.rank()),
  };
  const auto x = upload_as(mine, 1, static_cast<std::int64_t>(mine.size()));
  comm.all_reduce_max(x, stream);
  comm.wait(stream);
  const auto maxima = download_as(x.view);
  EXPECT_EQ(maxima[0], static_cast<float>(last));
  EXPECT_EQ(maxima[1], static_cast<float>(last));
  EXPECT_EQ(std::bit_cast<std::uint32_t>(maxima[2]), 0u);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(maxima[3]), 1u);
  EXPECT_TRUE(std::isnan(maxima[4]));
  EXPECT_TRUE(std::isnan(maxima[5]));
  EXPECT_EQ(maxima[6], infinity);
  EXPECT_EQ(maxima[7], 1.0f + 0x1p-23f * static_cast<float>(last));
}

TEST_P(CommDevice, RowsOfRaggedShares) {
  // Ranks own runs of unequal length with gaps between them, which stay as they are, and the order
  // of ranks is not that of rows.
  const std::size_t row_bytes = 13;
  std::vector<RowRange> rows(static_cast<std::size_t>(comm.size()));
  std::int64_t next = 2;
  for (int rank = comm.size() - 1; rank >= 0; --rank) {
    rows[static_cast<std::size_t>(rank)] = {next, rank == 1 ? 0 : 3000 * rank + 1};
    next += rows[static_cast<std::size_t>(rank)].count + 1;
  }
  const std::size_t bytes = static_cast<std::size_t>(next + 1) * row_bytes;
  std::vector<int> owner(bytes, -1);
  for (int rank = 0; rank < comm.size(); ++rank) {
    const RowRange range = rows[static_cast<std::size_t>(rank)];
    for (std::size_t i = static_cast<std::size_t>(range.begin) * row_bytes;
         i < static_cast<std::size_t>(range.begin + range.count) * row_bytes; ++i)
      owner[i] = rank;
  }
  std::vector<unsigned char> mine(bytes);
  for (std::size_t i = 0; i < bytes; ++i) mine[i] = byte_of(comm.rank(), i);
  const Buffer buffer = upload_bytes(mine);
  comm.all_gather_rows(buffer.data(), row_bytes, rows, stream);
  const auto received = download_bytes(buffer);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < bytes; ++i)
    wrong += received[i] != byte_of(owner[i] < 0 ? comm.rank() : owner[i], i);
  EXPECT_EQ(wrong, 0u);

  comm.all_gather_rows(nullptr, row_bytes,
                       std::vector<RowRange>(static_cast<std::size_t>(comm.size())),
                       stream);  // all empty
  EXPECT_THROW(comm.all_gather_rows(
                   buffer.data(), row_bytes,
                   std::vector<RowRange>(static_cast<std::size_t>(comm.size()) + 1), stream),
               std::invalid_argument);
}

TEST_P(CommDevice, ManyOperationsInARow) {
  // Queued without waiting between them: x ← sum over ranks, 20 times, from 1: ranks^20 modulo
  // nothing (4^20 = 2^40).
  const auto x = upload_as(std::vector<std::int64_t>(1 << 16, 1), 1 << 8, 1 << 8);
  std::int64_t expected = 1;
  for (int i = 0; i < 20; ++i) {
    comm.all_reduce_sum(x, stream);
    expected *= comm.size();
  }
  comm.wait(stream);
  for (const std::int64_t value : download_as(x.view)) ASSERT_EQ(value, expected);
}

TEST_P(CommDevice, TwoCommunicators) {
  Comm other(stream, {std::chrono::seconds(120), true});
  const auto x = upload_as(std::vector<std::int64_t>{comm.rank() + 1}, 1, 1);
  comm.all_reduce_sum(x, stream);
  comm.wait(stream);
  other.all_reduce_sum(x, stream);
  other.wait(stream);
  EXPECT_EQ(download_as(x.view)[0], comm.size() * comm.size() * (comm.size() + 1) / 2);
}

// Rank 0 stays away: the others end with one line, and their Comm takes no further operation.
TEST_P(CommDevice, WaitsAreBounded) {
  if (comm.size() == 1) GTEST_SKIP() << "needs two ranks";
  const auto limit = std::chrono::seconds(stream.on_cuda() ? 10 : 1);
  Comm bounded(stream, {limit, true});
  const auto x = upload_as(std::vector<std::int64_t>(1 << 20, 1), 1, 1 << 20);
  bounded.connect_ahead(stream);
  if (comm.rank() != 0) {
    const auto begin = std::chrono::steady_clock::now();
    std::string message;
    try {
      bounded.all_reduce_sum(x, stream);
      bounded.wait(stream);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    EXPECT_GE(std::chrono::steady_clock::now() - begin, limit);
    EXPECT_NE(message.find("rank " + std::to_string(comm.rank()) + " on host "), std::string::npos)
        << message;
    EXPECT_NE(message.find("not finished after " + std::to_string(limit.count()) + " s"),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("all_reduce_sum of 1048576 integers"), std::string::npos) << message;
    EXPECT_THROW(bounded.barrier(), std::runtime_error);
    EXPECT_THROW(bounded.all_reduce_sum(x, stream), std::runtime_error);
  }
  comm.barrier();  // the ranks are together again on the other communicator
}

// Every wait for the device is: here a blocking copy of what a collective has to bring.
TEST_P(CommDevice, BlockingCopiesAreBounded) {
  if (comm.size() == 1) GTEST_SKIP() << "needs two ranks";
  if (!stream.on_cuda()) GTEST_SKIP() << "on the CPU the collective itself waits";
  Comm bounded(stream, {std::chrono::seconds(10), true});
  const auto x = upload_as(std::vector<std::int64_t>(256, 1), 1, 256);
  Event behind(stream);
  CopyQueue queue(stream);
  bounded.all_reduce_sum(x, stream);  // the first one connects the ranks, and the host waits for it
  bounded.wait(stream);
  if (comm.rank() != 0) {
    const auto begin = std::chrono::steady_clock::now();
    bounded.all_reduce_sum(x, stream);
    record(behind, stream);
    queue.wait_for(behind);
    // A thread waits for the event, as those do that write activations to disk.
    auto other = std::async(std::launch::async, [&] {
      try {
        behind.wait();
      } catch (const SystemFault& error) {
        return std::string(error.what());
      }
      return std::string("no fault");
    });
    std::string message;
    try {
      std::vector<std::int64_t> values(256);
      copy_to_host(values.data(), x.view.data, 256 * sizeof(std::int64_t), stream);
    } catch (const SystemFault& error) {
      message = error.what();
    }
    const std::string of_thread = other.get();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(25));
    EXPECT_NE(message.find("all_reduce_sum of 256 integers"), std::string::npos) << message;
    // Whichever was first ends the other.
    EXPECT_TRUE(of_thread == "no fault" ||
                of_thread.find("not finished after 10 s") != std::string::npos)
        << of_thread;
    queue.synchronize();  // the device is free again
  }
  comm.barrier();
}

// An operation that took too long is still under way in MPI, which may go on with it at any later
// call; what it then writes is not the caller's memory any more.
TEST_P(CommDevice, ALateOperationWritesToNobodysMemory) {
  if (comm.size() == 1) GTEST_SKIP() << "needs two ranks";
  if (stream.on_cuda()) GTEST_SKIP() << "NCCL's operations end with their communicator";
  Comm bounded(stream, {std::chrono::seconds(1), true});
  const auto x = upload_as(std::vector<std::int64_t>(1 << 16, 1), 1, 1 << 16);
  if (comm.rank() != 0) {
    EXPECT_THROW(bounded.all_reduce_sum(x, stream), SystemFault);
    std::fill_n(x.view.data, 1 << 16, 7);
  }
  comm.barrier();
  if (comm.root()) {
    bounded.all_reduce_sum(x, stream);  // late
    EXPECT_EQ(x.view.data[0], comm.size());
  }
  comm.barrier();
  const std::int64_t expected = comm.root() ? comm.size() : 7;
  for (int i = 0; i < 1 << 16; ++i) ASSERT_EQ(x.view.data[i], expected) << i;
}

INSTANTIATE_TEST_SUITE_P(Backends, CommDevice, testing::ValuesIn(backends()), backend_name);

class CommHost : public testing::Test {
 protected:
  Stream stream{Backend::cpu, 0};
  Comm comm{stream, {std::chrono::seconds(60), false}};
};

TEST_F(CommHost, TextFromEveryRank) {
  for (int from = 0; from < comm.size(); ++from) {
    const std::string expected =
        from == 1 ? ""
                  : std::string("text\0of ", 8) + std::to_string(from) + std::string(100000, 'x');
    EXPECT_EQ(comm.broadcast(comm.rank() == from ? expected : "something else", from), expected);
  }
}

TEST_F(CommHost, GatherOfAnyLengths) {
  const auto text_of = [](int rank) {
    return std::string(rank == 1 ? 0 : 70000 * static_cast<std::size_t>(rank) + 5,
                       static_cast<char>('a' + rank));
  };
  const auto all = comm.gather(text_of(comm.rank()));
  if (!comm.root()) {
    EXPECT_TRUE(all.empty());
  } else {
    EXPECT_EQ(all.size(), static_cast<std::size_t>(comm.size()));
    for (std::size_t rank = 0; rank < all.size(); ++rank)
      EXPECT_EQ(all[rank], text_of(static_cast<int>(rank)));
  }
}

TEST_F(CommHost, AllGatherOfAnyLengths) {
  std::vector<double> expected;
  for (int rank = 0; rank < comm.size(); ++rank)
    for (int i = 0; i < (rank == 0 ? 0 : 3 * rank); ++i) expected.push_back(rank + i * 0.125);
  std::vector<double> mine;
  for (int i = 0; i < (comm.rank() == 0 ? 0 : 3 * comm.rank()); ++i)
    mine.push_back(comm.rank() + i * 0.125);
  EXPECT_EQ(comm.all_gather(mine), expected);
}

TEST_F(CommHost, TheLowestRanksFaultIsAgreedOn) {
  EXPECT_FALSE(comm.agree(std::nullopt));
  for (int first = 0; first < comm.size(); ++first) {
    std::optional<Comm::Fault> mine;
    if (comm.rank() >= first)
      mine = {70 + comm.rank(), "fault of rank " + std::to_string(comm.rank())};
    const auto fault = comm.agree(mine);
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->code, 70 + first);
    EXPECT_EQ(fault->message, "fault of rank " + std::to_string(first));
  }
}

TEST_F(CommHost, AFaultMayHaveAnyCodeAndNoMessage) {
  for (const int code : {0, 1, 255}) {
    std::optional<Comm::Fault> mine;
    if (comm.rank() == comm.size() - 1) mine = {code, ""};
    const auto fault = comm.agree(mine);
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->code, code);
    EXPECT_EQ(fault->message, "");
  }
}

TEST_F(CommHost, BarrierWaitsForTheLast) {
  const auto begin = std::chrono::steady_clock::now();
  if (comm.rank() == comm.size() - 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  comm.barrier();
  EXPECT_GE(std::chrono::steady_clock::now() - begin,
            std::chrono::milliseconds(comm.size() == 1 ? 200 : 100));
}

// What goes beyond a chunk is cut; here with small ones.
TEST_F(CommHost, Chunks) {
  std::vector<unsigned char> bytes(1000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = byte_of(comm.rank(), i);
  MpiOperation operation{MPI_COMM_WORLD, "test", std::chrono::seconds(60), 7};
  const int last = comm.size() - 1;
  broadcast({{bytes.data(), 500, last}, {bytes.data() + 500, 0, 0}, {bytes.data() + 500, 500, 0}},
            operation);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    ASSERT_EQ(bytes[i], byte_of(i < 500 ? last : 0, i));

  std::vector<std::int64_t> sums(100);
  for (std::size_t i = 0; i < sums.size(); ++i)
    sums[i] = static_cast<std::int64_t>(i) * (comm.rank() + 1);
  operation.chunk_bytes = 60;  // 7 integers
  all_reduce(sums.data(), sums.size(), 8, MPI_INT64_T, MPI_SUM, operation);
  for (std::size_t i = 0; i < sums.size(); ++i)
    ASSERT_EQ(sums[i], static_cast<std::int64_t>(i) * comm.size() * (comm.size() + 1) / 2);
}

TEST_F(CommHost, MpiErrorsAreExceptions) {
  int value = 0;
  std::string message;
  try {
    check(MPI_Bcast(&value, 1, MPI_INT, comm.size() + 5, MPI_COMM_WORLD));
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  EXPECT_NE(message.find("rank " + std::to_string(comm.rank()) + " on host "), std::string::npos)
      << message;
  EXPECT_NE(message.find("comm_mpi_test.cpp:"), std::string::npos) << message;
}

}  // namespace
}  // namespace qpipe
