#include "pipeline/model/safetensors.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <array>
#include <csignal>
#include <cstring>
#include <limits>
#include <random>
#include <thread>

#include "tests/paths.h"
#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

constexpr std::array every_dtype = {
    DType::f32,     DType::f16, DType::bf16, DType::f64,     DType::i64,     DType::i32,
    DType::i16,     DType::i8,  DType::u8,   DType::boolean, DType::f8_e4m3, DType::f8_e5m2,
    DType::f8_e8m0, DType::u16, DType::u32,  DType::u64,     DType::c64};

// {"a": ENTRY} with six F32 values, and 24 bytes of data.
std::string with_a(const std::string& entry, std::size_t data_bytes = 24) {
  return safetensors_bytes("{\"a\":" + entry + "}", data_bytes);
}
const std::string good_a = R"({"dtype":"F32","shape":[2,3],"data_offsets":[0,24]})";

void expect_refused(const std::string& bytes, const std::vector<std::string>& parts,
                    ExitCode code = ExitCode::data) {
  const TemporaryFolder folder;
  const fs::path path = folder.write("x.safetensors", bytes);
  std::vector<std::string> all = {path.string() + ": "};
  all.insert(all.end(), parts.begin(), parts.end());
  expect_fault([&] { SafetensorsFile file(path); }, code, all);
}

void expect_header_refused(const std::string& header, const std::vector<std::string>& parts,
                           std::size_t data_bytes = 24) {
  expect_refused(safetensors_bytes(header, data_bytes), parts);
}

template <class T>
std::vector<T> values_of(const SafetensorsFile& file, const std::string& name) {
  std::vector<T> values(static_cast<std::size_t>(file.info(name).bytes()) / sizeof(T));
  file.read(name, values.data());
  return values;
}

TEST(SafetensorsRead, FileOfThePythonPackage) {
  const SafetensorsFile file(tests_folder() / "golden/safetensors_python.safetensors");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(file.tensors().size(), 6u);
  EXPECT_EQ(file.info("model.a.weight").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(file.info("model.a.weight").rows(), 2);
  EXPECT_EQ(file.info("model.a.weight").cols(), 3);
  EXPECT_EQ(file.info("model.codes").rows(), 1);
  EXPECT_EQ(file.info("model.codes").cols(), 3);
  EXPECT_EQ(file.info("model.c.half").dtype, DType::f16);
  EXPECT_EQ(values_of<float>(file, "model.a.weight"),
            (std::vector<float>{-0.75f, -0.5f, -0.25f, 0.0f, 0.25f, 0.5f}));
  EXPECT_EQ(values_of<std::int64_t>(file, "model.é\"b"), (std::vector<std::int64_t>{7, -8}));
  EXPECT_EQ(values_of<std::uint16_t>(file, "model.c.half"),
            (std::vector<std::uint16_t>{0x3e00, 0xc080}));
  EXPECT_EQ(values_of<std::uint8_t>(file, "model.codes"), (std::vector<std::uint8_t>{255, 0, 3}));
  EXPECT_EQ(values_of<float>(file, "model.scalar"), (std::vector<float>{2.5f}));
  EXPECT_EQ(file.info("model.empty").bytes(), 0);
  EXPECT_TRUE(values_of<float>(file, "model.empty").empty());
  expect_fault([&] { (void)file.info("model.scalar").rows(); }, ExitCode::data,
               {"model.scalar", "[]"});
}

TEST(SafetensorsRead, RangesOfATensor) {
  const SafetensorsFile file(tests_folder() / "golden/safetensors_python.safetensors");
  const auto range = [&](std::int64_t begin, std::int64_t count) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(std::max<std::int64_t>(count, 0)));
    file.read("model.codes", begin, count, bytes.data());
    return bytes;
  };
  EXPECT_EQ(range(0, 3), (std::vector<std::uint8_t>{255, 0, 3}));
  EXPECT_EQ(range(1, 2), (std::vector<std::uint8_t>{0, 3}));
  EXPECT_EQ(range(2, 1), (std::vector<std::uint8_t>{3}));
  EXPECT_EQ(range(3, 0), (std::vector<std::uint8_t>{}));
  // The tensor after it in the file is not read.
  for (const auto& [begin, count] :
       {std::pair<std::int64_t, std::int64_t>{-1, 1}, {0, 4}, {3, 1}, {1, 3}, {1, -1}})
    EXPECT_THROW(range(begin, count), std::out_of_range) << begin << " " << count;
}

TEST(SafetensorsRead, MinimalFiles) {
  const TemporaryFolder folder;
  EXPECT_TRUE(SafetensorsFile(folder.write("a", safetensors_bytes("{}", 0))).tensors().empty());
  EXPECT_EQ(SafetensorsFile(folder.write("b", with_a(good_a))).info("a").bytes(), 24);
  // A header need not be padded, may be padded and may list the tensors in any order.
  const std::string two =
      R"({"b":{"dtype":"I16","shape":[1],"data_offsets":[3,5]},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}   )";
  EXPECT_EQ(
      values_of<std::uint8_t>(SafetensorsFile(folder.write("c", safetensors_bytes(two, 5))), "b"),
      (std::vector<std::uint8_t>{3, 4}));
}

TEST(SafetensorsRead, LengthFaults) {
  expect_refused("", {"has 0 bytes", "truncated"});
  expect_refused("1234567", {"has 7 bytes", "truncated"});
  expect_refused(little_endian(0), {"does not start with '{'"});
  expect_refused(little_endian(50) + "{}", {"truncated: its header has 50 bytes, the file 10"});
  expect_refused(little_endian(100'000'001) + "{}",
                 {"100000001 bytes is over the format's limit of 100000000"});
  expect_refused(little_endian(100'000'000) + "{}", {"truncated: its header has 100000000 bytes"});
  expect_refused(little_endian(std::numeric_limits<std::uint64_t>::max()) + "{}",
                 {"18446744073709551615", "limit"});
  expect_refused(little_endian(std::uint64_t{1} << 63) + "{}", {"limit"});
}

TEST(SafetensorsRead, JsonFaults) {
  expect_header_refused(" {}", {"does not start with '{'"}, 0);
  expect_header_refused("[]", {"does not start with '{'"}, 0);
  expect_header_refused("{\"\xff\":1}", {"the header is not UTF-8 (byte 3)"}, 0);
  expect_header_refused("{\"\xc0\xaf\":1}", {"not UTF-8"}, 0);      // overlong
  expect_header_refused("{\"\xed\xa0\x80\":1}", {"not UTF-8"}, 0);  // surrogate
  expect_header_refused("{\"a\":\"\\ud800\"}", {"not valid JSON"}, 0);
  expect_header_refused("{\"a\":", {"not valid JSON"}, 0);
  expect_header_refused("{}x", {"not valid JSON (byte 3)"}, 0);
  expect_header_refused(std::string("{}\0", 3), {"not valid JSON (byte 3)"}, 0);
  expect_header_refused(std::string("{}\0garbage", 10), {"not valid JSON (byte 3)"}, 0);
  expect_header_refused("{\"a\":NaN}", {"not valid JSON"}, 0);
  expect_header_refused("{\"a\":1e999}", {"a number beyond the range of double"}, 0);
  expect_header_refused("{\"a\n", {"not valid JSON"}, 0);
  expect_header_refused("{\"" + std::string(3'000'000, 'x'), {"not valid JSON"}, 0);
  for (const char* open : {"[", "{\"a\":"}) {
    std::string deep = "{\"a\":";
    for (int i = 0; i < 1'000'000; ++i) deep += open;
    expect_header_refused(deep, {"nested deeper than 64 levels"}, 0);
  }
}

TEST(SafetensorsRead, DuplicateNames) {
  expect_header_refused("{\"a\":" + good_a + ",\"a\":" + good_a + "}",
                        {"the header has \"a\" twice"});
  expect_header_refused("{\"a\":" + good_a + ",\"\\u0061\":" + good_a + "}",
                        {"the header has \"a\" twice"});
  expect_refused(with_a(R"({"dtype":"F32","shape":[2,3],"shape":[3,2],"data_offsets":[0,24]})"),
                 {"\"shape\" twice"});
  expect_header_refused(R"({"__metadata__":{"k":"1","k":"2"}})", {"\"k\" twice"}, 0);
}

TEST(SafetensorsRead, EntryFaults) {
  expect_refused(with_a("3"), {"\"a\": is not an object"});
  expect_refused(with_a(R"({"shape":[2,3],"data_offsets":[0,24]})"), {"\"a\": has no dtype"});
  expect_refused(with_a(R"({"dtype":"F32","data_offsets":[0,24]})"), {"\"a\": has no shape"});
  expect_refused(with_a(R"({"dtype":"F32","shape":[2,3]})"), {"\"a\": has no data_offsets"});
  expect_refused(with_a(R"({"dtype":"F32","shape":[2,3],"data_offsets":[0,24],"strides":[3,1]})"),
                 {"\"a\": has keys other than"});
  expect_refused(with_a(R"({"dtype":7,"shape":[2,3],"data_offsets":[0,24]})"),
                 {"\"a\": dtype is not a string"});
  expect_refused(with_a(R"({"dtype":"F6_E2M3","shape":[32],"data_offsets":[0,24]})"),
                 {"\"a\": dtype \"F6_E2M3\" is not supported",
                  "F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL, F8_E4M3, F8_E5M2, F8_E8M0, "
                  "U16, U32, U64, C64"});
  expect_refused(with_a(R"({"dtype":"f32","shape":[2,3],"data_offsets":[0,24]})"),
                 {"dtype \"f32\" is not supported"});
  expect_refused(with_a(R"({"dtype":"F32","shape":6,"data_offsets":[0,24]})"),
                 {"\"a\": shape is not an array"});
  for (const char* size : {"-2", "-0", "2.0", "2e0", "9223372036854775808", "18446744073709551616",
                           "1e300", "\"2\"", "null", "[2]"})
    expect_refused(
        with_a(std::string(R"({"dtype":"F32","shape":[)") + size + R"(,3],"data_offsets":[0,24]})"),
        {"\"a\": shape:", "is not an integer from 0 to 2^63-1"});
  expect_refused(
      with_a(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0),
      {"\"a\": the size of shape", "overflows"});
  expect_refused(with_a(R"({"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]})", 0),
                 {"\"a\": the size of shape", "overflows"});
  expect_refused(with_a(R"({"dtype":"F32","shape":[2,2],"data_offsets":[0,24]})"),
                 {"\"a\": shape [2, 2] of F32 takes 16 bytes, but data_offsets hold 24"});
  expect_refused(with_a(R"({"dtype":"F32","shape":[2,3],"data_offsets":[24,0]})"),
                 {"\"a\": data_offsets [24, 0] begin after their end"});
  for (const char* offsets : {"24", "[24]", "[0,24,24]", "{}"})
    expect_refused(
        with_a(std::string(R"({"dtype":"F32","shape":[2,3],"data_offsets":)") + offsets + "}"),
        {"\"a\": data_offsets is not an array of two numbers"});
  for (const char* end : {"-24", "24.0", "18446744073709551616"})
    expect_refused(
        with_a(std::string(R"({"dtype":"F32","shape":[2,3],"data_offsets":[0,)") + end + "]}"),
        {"\"a\": data_offsets:", "is not an integer"});
}

TEST(SafetensorsRead, CoverFaults) {
  const auto two = [](int begin, int end) {
    return "{\"a\":" + good_a + R"(,"b":{"dtype":"U8","shape":[4],"data_offsets":[)" +
           std::to_string(begin) + "," + std::to_string(end) + "]}}";
  };
  const TemporaryFolder folder;
  EXPECT_EQ(
      SafetensorsFile(folder.write("ok", safetensors_bytes(two(24, 28), 28))).tensors().size(), 2u);
  expect_header_refused(two(20, 24), {"\"b\": overlaps \"a\""});
  expect_header_refused(two(0, 4), {"\"a\": overlaps \"b\""});
  expect_header_refused(two(26, 30), {"\"b\": begins at byte 26", "a hole of 2 bytes"}, 30);
  expect_header_refused(
      two(24, 28), {"\"b\": the file is truncated", "ends at byte 28 of the data, which has 27"},
      27);
  expect_header_refused(two(24, 28), {"1 bytes follow the last tensor"}, 29);
  expect_refused(with_a(R"({"dtype":"F32","shape":[2,3],"data_offsets":[4,28]})", 28),
                 {"\"a\": begins at byte 4", "hole of 4 bytes"});
  expect_header_refused("{}", {"24 bytes follow the last tensor"});
  expect_refused(
      with_a(
          R"({"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]})"),
      {"truncated"});
}

TEST(SafetensorsRead, Metadata) {
  const TemporaryFolder folder;
  const SafetensorsFile file(
      folder.write("m", safetensors_bytes(R"({"__metadata__":{"k":"v","":""}})", 0)));
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"", ""}, {"k", "v"}}));
  EXPECT_FALSE(file.contains("__metadata__"));
  expect_header_refused(R"({"__metadata__":{"k":1}})",
                        {"\"__metadata__\": the value of \"k\" is not a string"}, 0);
  expect_header_refused(R"({"__metadata__":{"k":{"l":"m"}}})",
                        {"the value of \"k\" is not a string"}, 0);
  expect_header_refused(R"({"__metadata__":"pt"})", {"\"__metadata__\": is not an object"}, 0);
}

TEST(SafetensorsRead, NamesInMessagesStayOnOneShortLine) {
  for (const std::string name : {"a\\nb", "\\u001b[2J", "a\\u202eb", "\x7f"})
    expect_header_refused("{\"" + name + "\":3}", {"characters that cannot be shown"}, 0);
  expect_header_refused("{\"" + std::string(1'000'000, 'x') + "\":3}", {"...: is not an object"},
                        0);
  expect_header_refused("{\"" + std::string(199, 'x') + "é\":3}", {"is not an object"},
                        0);  // cut inside a character
  expect_refused(with_a(R"({"dtype":")" + std::string(1'000'000, '\'') +
                        R"(","shape":[],"data_offsets":[0,24]})"),
                 {"is not supported"});
  std::string shape = "0";
  for (int i = 0; i < 100'000; ++i) shape += ",1";
  expect_refused(with_a(R"({"dtype":"F32","shape":[)" + shape + R"(],"data_offsets":[0,24]})"),
                 {"dimensions"});
}

TEST(SafetensorsRead, NotAFile) {
  const TemporaryFolder folder;
  const auto refused = [&](const fs::path& path, const std::string& part) {
    expect_fault([&] { SafetensorsFile file(path); }, ExitCode::no_input,
                 {path.string() + ": ", part});
  };
  refused(folder.path() / "absent.safetensors", "No such file");
  refused(folder.path(), "is a folder");
  refused("/dev/zero", "is a device");
  const fs::path fifo = folder.path() / "fifo.safetensors";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  refused(fifo, "is a FIFO");
  refused(folder.write(
              "lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 988097824\n"),
          "git lfs pull");

  const fs::path secret = folder.write("secret", with_a(good_a));
  fs::permissions(secret, fs::perms::none);
  fs::permissions(folder.path(), fs::perms(0755));
  const WithoutRootRights rights;
  refused(secret, "Permission denied");
}

TEST(SafetensorsRead, FileCutAfterOpening) {
  const TemporaryFolder folder;
  const fs::path path = folder.write("x", with_a(good_a));
  const SafetensorsFile file(path);
  fs::resize_file(path, fs::file_size(path) - 1);
  std::array<float, 6> to{};
  expect_fault([&] { file.read("a", to.data()); }, ExitCode::data,
               {path.string(), "\"a\"", "truncated"});
}

TEST(SafetensorsRead, UnknownNameSuggestsTheNearest) {
  const SafetensorsFile file(tests_folder() / "golden/safetensors_python.safetensors");
  expect_fault([&] { (void)file.info("model.a.wieght"); }, ExitCode::data,
               {"no tensor \"model.a.wieght\"", "\"model.a.weight\""});
  expect_fault([&] { (void)file.info("zzz"); }, ExitCode::data, {"no tensor \"zzz\""});
}

TEST(SafetensorsRead, ManyThreads) {
  const TemporaryFolder folder;
  std::string header = "{";
  for (int i = 0; i < 256; ++i)
    header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[1024],"data_offsets":[{},{}]}})",
                          i > 0 ? "," : "", i, i * 1024, (i + 1) * 1024);
  std::string bytes = safetensors_bytes(header + "}", 0);
  for (int i = 0; i < 256; ++i) bytes += std::string(1024, static_cast<char>(i));
  const SafetensorsFile file(folder.write("x", bytes));
  std::array<int, 4> wrong{};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 256; ++i) {
        const int which = (i * 37 + static_cast<int>(t) * 64) % 256;
        wrong[t] += values_of<char>(file, std::to_string(which)) !=
                    std::vector<char>(1024, static_cast<char>(which));
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, (std::array<int, 4>{}));
}

// Mutated files are opened or refused with one line; nothing else.
TEST(SafetensorsRead, Fuzz) {
  const TemporaryFolder folder;
  const std::string valid = read_bytes(tests_folder() / "golden/safetensors_python.safetensors");
  const std::size_t header_end = valid.find("  ") + 2;
  const std::array<std::string, 16> tokens = {"-1",
                                              "1e9",
                                              "18446744073709551615",
                                              "9223372036854775807",
                                              "[[[[",
                                              "{",
                                              "}",
                                              "\"",
                                              "\\u0000",
                                              ",",
                                              ":",
                                              "null",
                                              "\"F16\"",
                                              "]",
                                              "0",
                                              "\xf0\x9f"};
  std::mt19937 random(20240607);
  const auto below = [&](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
  };
  int opened = 0, refused = 0;
  for (int iteration = 0; iteration < 20'000; ++iteration) {
    std::string header = valid.substr(8, header_end - 8);
    for (std::size_t edits = 1 + below(3); edits > 0; --edits) {
      const std::size_t at = below(header.size());
      switch (below(5)) {
        case 0: header[at] = static_cast<char>(below(256)); break;
        case 1: header.erase(at, 1 + below(8)); break;
        case 2: header.insert(at, tokens[below(tokens.size())]); break;
        case 3: header.insert(at, header.substr(below(header.size()), below(40))); break;
        default: header[at] = static_cast<char>('0' + below(10)); break;
      }
      if (header.empty()) header += '{';
    }
    std::string bytes = little_endian(header.size()) + header + valid.substr(header_end);
    if (below(8) == 0) bytes[below(8)] = static_cast<char>(below(256));
    if (below(8) == 0) bytes.resize(below(bytes.size() + 1));
    fs::remove(folder.path() /
               "x");  // some file systems flush a file that is cut and written again
    const fs::path path = folder.write("x", bytes);
    try {
      const SafetensorsFile file(path);
      for (const auto& [name, info] : file.tensors()) (void)values_of<char>(file, name);
      ++opened;
    } catch (const UserError& error) {
      const std::string message = error.what();
      ASSERT_TRUE(message.starts_with(path.string() + ": ") &&
                  message.find('\n') == std::string::npos)
          << message;
      ++refused;
    }
  }
  EXPECT_GT(opened, 100);  // some edits change a name or a shape harmlessly
  EXPECT_GT(refused, 10'000);
}

TEST(SafetensorsRead, EveryOracle) {
  if (!fs::exists(shared_folder())) GTEST_SKIP() << "no " << shared_folder();
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(shared_folder() / "oracles")) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file(entry.path());
    EXPECT_FALSE(file.tensors().empty()) << entry.path();
    ++files;
  }
  EXPECT_GT(files, 10);
}

// ---- writing

const std::vector<TensorInfo> python_tensors = {
    {"model.codes", DType::u8, {3}},     {"model.a.weight", DType::f32, {2, 3}},
    {"model.scalar", DType::f32, {}},    {"model.é\"b", DType::i64, {2}},
    {"model.empty", DType::f32, {0, 4}}, {"model.c.half", DType::f16, {2, 1}},
};

TEST(SafetensorsWrite, BytesOfThePythonPackage) {
  const fs::path golden = tests_folder() / "golden/safetensors_python.safetensors";
  const SafetensorsFile from(golden);
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  SafetensorsWriter writer(path, python_tensors);
  const auto files = [&] {
    return std::vector<fs::path>(fs::directory_iterator(folder.path()), fs::directory_iterator());
  };
  ASSERT_EQ(files().size(), 1u);
  EXPECT_EQ(fs::file_size(files().front()), fs::file_size(golden));  // the full size at once
  for (const TensorInfo& tensor : python_tensors)
    writer.write(tensor.name, values_of<char>(from, tensor.name).data());
  EXPECT_FALSE(fs::exists(path));
  writer.finish();
  EXPECT_EQ(files(), std::vector<fs::path>{path});
  EXPECT_EQ(read_bytes(path), read_bytes(golden));
}

TEST(SafetensorsWrite, RoundTripOfEveryDtype) {
  std::vector<TensorInfo> tensors;
  for (const DType dtype : every_dtype)
    for (std::int64_t count : {0, 1, 3})
      tensors.push_back(
          {std::string(name_of(dtype)) + "." + std::to_string(count), dtype, {count, 5}});
  const auto data_of = [](const TensorInfo& tensor) {
    std::vector<unsigned char> data;
    for (std::int64_t i = 0; i < tensor.bytes(); ++i)
      data.push_back(static_cast<unsigned char>(i * 7 + tensor.name[0]));
    return data;
  };
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  SafetensorsWriter writer(path, tensors);
  for (auto tensor = tensors.rbegin(); tensor != tensors.rend(); ++tensor)
    writer.write(tensor->name, data_of(*tensor).data());
  writer.finish();
  const SafetensorsFile file(path);
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const TensorInfo& tensor : tensors) {
    EXPECT_EQ(file.info(tensor.name).dtype, tensor.dtype);
    EXPECT_EQ(file.info(tensor.name).shape, tensor.shape);
    EXPECT_EQ(values_of<unsigned char>(file, tensor.name), data_of(tensor)) << tensor.name;
  }
  EXPECT_EQ(fs::status(path).permissions() & fs::perms::owner_read, fs::perms::owner_read);
}

// The data of every tensor starts at a multiple of its dtype's size in the file, odd sizes
// notwithstanding.
TEST(SafetensorsWrite, Alignment) {
  std::vector<TensorInfo> tensors;
  for (const DType dtype : every_dtype)
    tensors.push_back({fmt::format("z{}", name_of(dtype)), dtype, {3}});
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  SafetensorsWriter writer(path, tensors);
  std::map<std::string, std::string> data;
  for (const TensorInfo& tensor : tensors) {
    std::string& bytes = data[tensor.name] =
        std::string(static_cast<std::size_t>(tensor.bytes()), '\0');
    for (char& byte : bytes) byte = static_cast<char>(128 + static_cast<int>(tensor.dtype));
    writer.write(tensor.name, bytes.data());
  }
  writer.finish();
  const std::string bytes = read_bytes(path);
  for (const TensorInfo& tensor : tensors) {
    const std::size_t at = bytes.find(data[tensor.name]);
    ASSERT_NE(at, std::string::npos) << tensor.name;
    EXPECT_EQ(at % size_of(tensor.dtype), 0u) << tensor.name;
  }
}

// More than the pieces that writes are cut into, and not a whole number of them.
TEST(SafetensorsWrite, LargeTensor) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  std::vector<std::uint32_t> values((std::size_t{5} << 20) + 77);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<std::uint32_t>(i * 2654435761u);
  SafetensorsWriter writer(
      path, {{"a", DType::i32, {static_cast<std::int64_t>(values.size())}}, {"b", DType::u8, {3}}});
  writer.write("a", values.data());
  writer.write("b", "xyz");
  writer.finish();
  const SafetensorsFile file(path);
  std::vector<std::uint32_t> back(values.size());
  file.read("a", back.data());
  EXPECT_TRUE(back == values);
  std::array<char, 3> text{};
  file.read("b", text.data());
  EXPECT_EQ(std::string(text.data(), 3), "xyz");
}

TEST(SafetensorsWrite, AnyThreadAnyOrderGivesTheSameBytes) {
  std::vector<TensorInfo> tensors;
  for (int i = 0; i < 64; ++i)
    tensors.push_back({fmt::format("t{}", i),
                       every_dtype[static_cast<std::size_t>(i) % every_dtype.size()],
                       {i, 31}});
  const auto data_of = [](const TensorInfo& tensor) {
    return std::string(static_cast<std::size_t>(tensor.bytes()),
                       static_cast<char>(std::stoi(tensor.name.substr(1))));
  };
  const TemporaryFolder folder;
  SafetensorsWriter one(folder.path() / "one", tensors), many(folder.path() / "many", tensors);
  for (const TensorInfo& tensor : tensors) one.write(tensor.name, data_of(tensor).data());
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (std::size_t i = tensors.size(); i-- > 0;)
        if (i % 4 == t) many.write(tensors[i].name, data_of(tensors[i]).data());
    });
  for (std::thread& thread : threads) thread.join();
  one.finish();
  many.finish();
  EXPECT_EQ(read_bytes(folder.path() / "one"), read_bytes(folder.path() / "many"));
}

TEST(SafetensorsWrite, UnfinishedLeavesNothing) {
  const TemporaryFolder folder;
  const fs::path path = folder.write("x.safetensors", "the file of an earlier run");
  folder.write("x.safetensors.tmp", "somebody's file");
  {
    SafetensorsWriter writer(path, {{"a", DType::f32, {2}}});
    SafetensorsWriter moved = std::move(writer);
  }
  EXPECT_EQ(read_bytes(path.string() + ".tmp"), "somebody's file");
  EXPECT_EQ(read_bytes(path), "the file of an earlier run");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 2);
}

constexpr auto keep = SafetensorsWriter::Leftover::keep;
constexpr auto owner = SafetensorsWriter::Role::owner;

TEST(SafetensorsWrite, DoesNotWriteThroughLinksAndFifos) {
  const TemporaryFolder folder;
  const fs::path other = folder.write("other", "precious");
  fs::create_symlink(other, folder.path() / "x.tmp");
  fs::create_symlink(other, folder.path() / "y");
  ASSERT_EQ(mkfifo((folder.path() / "z.tmp").c_str(), 0600), 0);
  for (const char* name : {"x", "y", "z"})
    expect_fault([&] { SafetensorsWriter(folder.path() / name, {}, owner, keep).finish(); },
                 ExitCode::cannot_create, {name, "move it"});
  EXPECT_EQ(read_bytes(other), "precious");
}

TEST(SafetensorsWrite, AnotherFinishedFileIsSomebodyElses) {
  const TemporaryFolder folder;
  const std::array<float, 2> data = {1.0f, 2.0f};
  const fs::path path = folder.path() / "x";
  {
    SafetensorsWriter writer(path, {{"a", DType::f32, {2}}}, owner, keep);
    writer.write("a", data.data());
    writer.finish();
  }
  const std::string finished = read_bytes(path);
  expect_fault(
      [&] {
        SafetensorsWriter(path, {{"b", DType::f32, {2}}}, owner, keep);
      },
      ExitCode::cannot_create, {path.string(), "was not written by this run"});
  EXPECT_EQ(read_bytes(path), finished);
  SafetensorsWriter again(path, {{"a", DType::f32, {2}}}, owner, keep);  // goes on with its own
  again.adopt("a");
  again.finish();
  EXPECT_EQ(read_bytes(path), finished);
}

TEST(SafetensorsWrite, TheUmaskIsObeyed) {
  const TemporaryFolder folder;
  const mode_t before = umask(0077);
  SafetensorsWriter(folder.path() / "x", {}).finish();
  umask(before);
  EXPECT_EQ(fs::status(folder.path() / "x").permissions(),
            fs::perms::owner_read | fs::perms::owner_write);
}

TEST(SafetensorsWrite, EveryTensorExactlyOnce) {
  const TemporaryFolder folder;
  const std::array<float, 2> data = {1.0f, 2.0f};
  SafetensorsWriter writer(folder.path() / "x", {{"a", DType::f32, {2}}, {"b", DType::f32, {0}}});
  EXPECT_THROW(writer.write("c", data.data()), std::logic_error);
  writer.write("a", data.data());
  EXPECT_THROW(writer.write("a", data.data()), std::logic_error);
  EXPECT_THROW(writer.finish(), std::logic_error);  // "b" is empty, but not written
  EXPECT_FALSE(fs::exists(folder.path() / "x"));
  writer.write("b", nullptr);
  writer.finish();
  EXPECT_THROW(writer.finish(), std::logic_error);
  EXPECT_THROW(writer.write("a", data.data()), std::logic_error);
  EXPECT_EQ(values_of<float>(SafetensorsFile(folder.path() / "x"), "a"),
            (std::vector<float>{1.0f, 2.0f}));
}

TEST(SafetensorsWrite, ImpossibleTensors) {
  const TemporaryFolder folder;
  const auto make = [&](const std::vector<TensorInfo>& tensors) {
    SafetensorsWriter writer(folder.path() / "x", tensors);
  };
  EXPECT_THROW(make({{"a", DType::f32, {2}}, {"a", DType::u8, {2}}}), std::invalid_argument);
  EXPECT_THROW(make({{"__metadata__", DType::f32, {2}}}), std::invalid_argument);
  EXPECT_THROW(make({{"a", DType::f32, {-2}}}), UserError);
  EXPECT_THROW(make({{"a", DType::f32, {std::int64_t{1} << 62}}}), UserError);
  const TensorInfo half{"a", DType::u8, {std::int64_t{1} << 62}};
  EXPECT_THROW(make({half, {"b", half.dtype, half.shape}}), std::invalid_argument);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

// Files may not grow over `bytes` for as long as it lives; a write that would fails with EFBIG.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
  sighandler_t handler_;
};

TEST(SafetensorsWrite, NoSpace) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  const std::vector<TensorInfo> tensors = {{"a", DType::u8, {1 << 20}}};
  const std::string data(1 << 20, 'x');
  const auto expect_io_fault = [&](auto&& action) {
    try {
      action();
      ADD_FAILURE() << "accepted";
    } catch (const UserError& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.code, ExitCode::io);
      EXPECT_TRUE(message.starts_with(path.string())) << message;
      EXPECT_NE(message.find(std::strerror(EFBIG)), std::string::npos) << message;
    }
  };
  {
    const FileSizeLimit limit(1 << 16);
    expect_io_fault([&] { SafetensorsWriter writer(path, tensors); });
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  {
    SafetensorsWriter writer(path, tensors);
    const FileSizeLimit limit(1 << 16);
    expect_io_fault([&] { writer.write("a", data.data()); });
    EXPECT_THROW(writer.finish(), std::logic_error);
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(SafetensorsWrite, FolderFaults) {
  const TemporaryFolder folder;
  const auto message_of = [](const fs::path& path) -> std::string {
    try {
      SafetensorsWriter(path, {}).finish();
    } catch (const UserError& error) {
      return error.code == ExitCode::io ? error.what() : "wrong code";
    }
    return "accepted";
  };
  const fs::path absent = folder.path() / "absent" / "x";
  EXPECT_EQ(message_of(absent), absent.string() + ": cannot be created: No such file or directory");
  fs::create_directories(folder.path() / "x" / "y");
  expect_fault([&] { SafetensorsWriter(folder.path() / "x", {}).finish(); },
               ExitCode::cannot_create, {"x: is a folder"});
  EXPECT_FALSE(fs::exists(folder.path() / "x.tmp"));
}

}  // namespace
}  // namespace qpipe
