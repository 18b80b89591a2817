#include "kernels/stream.h"

#include <cstring>
#include <future>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class StreamTest : public BackendTest {};
// Many small uploads one after the other, more than wait in page-locked memory at once; the host's
// memory is used again at once.
TEST_P(StreamTest, UploadsKeepTheirValues) {
  constexpr std::int64_t count = 1000;
  std::vector<std::int32_t> values(static_cast<std::size_t>(count));
  std::vector<Array<std::int32_t>> arrays;
  for (std::int32_t i = 0; i < 2000; ++i) {
    std::iota(values.begin(), values.end(), 7 * i);
    arrays.emplace_back(1, count, stream);
    copy_to_device(arrays.back().view.data, values.data(), arrays.back().memory.bytes(), stream);
  }
  for (std::int32_t i = 0; i < 2000; ++i) {
    std::iota(values.begin(), values.end(), 7 * i);
    ASSERT_EQ(download_as(arrays[static_cast<std::size_t>(i)].view), values) << i;
  }
}

// A queue beside another keeps what its buffers give back, as far as the limit allows.
TEST_P(StreamTest, AQueueBesideKeepsItsMemory) {
  const std::size_t before = stream.bytes_in_use();
  const auto beside = Stream::beside(stream);
  const std::size_t kept = stream.on_cuda() ? 1 << 20 : 0;
  { const Buffer first(1 << 20, *beside); }
  EXPECT_EQ(stream.bytes_in_use(), before + kept);
  { const Buffer again(1 << 20, *beside); }
  EXPECT_EQ(stream.bytes_in_use(), before + kept);
  stream.set_limit(before + (3 << 19));
  { const Buffer other(1 << 20, stream); }  // what is kept makes room
  EXPECT_EQ(stream.bytes_in_use(), before);
  EXPECT_THROW(Buffer(2 << 20, stream), std::runtime_error);
  stream.set_limit(0);
  { const Buffer third(1 << 20, *beside); }
  stream.release_kept();
  EXPECT_EQ(stream.bytes_in_use(), before);
}

INSTANTIATE_TEST_SUITE_P(Backends, StreamTest, testing::ValuesIn(backends()), backend_name);

TEST_P(StreamTest, HostBuffersCopyToTheDeviceAndBack) {
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{1}, std::size_t{255}, std::size_t{70000}}) {
    const HostBuffer from(bytes, stream);
    const HostBuffer to(bytes, stream);
    ASSERT_EQ(to.bytes(), bytes);
    for (std::size_t i = 0; i < bytes; ++i) from.data()[i] = static_cast<unsigned char>(i * 31 + 7);
    if (bytes > 0) std::memset(to.data(), 0, bytes);
    const Buffer on_device(bytes, stream);
    copy_to_device(on_device.data(), from.data(), bytes, stream);
    copy_to_host(to.data(), on_device.data(), bytes, stream);
    EXPECT_TRUE(std::equal(from.begin(), from.end(), to.begin(), to.end())) << bytes;
  }
}

// What was given back is taken again, if it is not far too large; never while it is held, by a copy
// either.
TEST_P(StreamTest, HostMemoryIsTakenAgain) {
  const unsigned char* first = nullptr;
  {
    const HostBuffer buffer(1000, stream);
    first = buffer.data();
  }
  HostBuffer again(900, stream);
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(again.bytes(), 900u);
  EXPECT_NE(HostBuffer(900, stream).data(), first);
  const HostBuffer copy = again;
  again = HostBuffer();
  EXPECT_EQ(copy.data(), first);
  EXPECT_NE(HostBuffer(900, stream).data(), first);

  Stream other(stream.backend(), 0);
  const unsigned char* large = HostBuffer(std::size_t{1} << 20, other).data();
  EXPECT_NE(HostBuffer(1000, other).data(), large);
  EXPECT_EQ(HostBuffer(std::size_t{1} << 19, other).data(), large);
}

TEST_P(StreamTest, HostBuffersFromManyThreads) {
  std::vector<std::future<void>> threads;
  for (int t = 0; t < 4; ++t)
    threads.push_back(std::async(std::launch::async, [&, t] {
      for (int i = 0; i < 200; ++i) {
        const auto bytes = static_cast<std::size_t>(100 + 37 * ((i + t) % 50));
        const HostBuffer buffer(bytes, stream);
        std::memset(buffer.data(), t, bytes);
        std::this_thread::yield();
        const std::set<unsigned char> found(buffer.begin(), buffer.end());
        if (found != std::set<unsigned char>{static_cast<unsigned char>(t)})
          throw std::runtime_error("two buffers share memory");
      }
    }));
  for (std::future<void>& thread : threads) EXPECT_NO_THROW(thread.get());
}

TEST(HostBuffer, TakesOverAVector) {
  std::vector<unsigned char> bytes{1, 2, 3};
  const unsigned char* place = bytes.data();
  const HostBuffer buffer(std::move(bytes));
  EXPECT_EQ(buffer.data(), place);
  EXPECT_EQ(std::vector<unsigned char>(buffer.begin(), buffer.end()),
            (std::vector<unsigned char>{1, 2, 3}));
  EXPECT_EQ(HostBuffer(std::vector<unsigned char>{}).bytes(), 0u);
}

// The buffer outlives its stream.
TEST_P(StreamTest, HostBufferAfterItsStream) {
  HostBuffer buffer;
  {
    const Stream gone(stream.backend(), 0);
    buffer = HostBuffer(100, gone);
  }
  std::memset(buffer.data(), 5, buffer.bytes());
  EXPECT_EQ(buffer.data()[99], 5);
}

}  // namespace
}  // namespace qpipe
