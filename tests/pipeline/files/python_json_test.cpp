#include "pipeline/files/python_json.h"

#include <gtest/gtest.h>

#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"

namespace qpipe {
namespace {

using nlohmann::json;

json python(const std::string& text) {
  return parse_json(text, "file:", "advice", JsonKind::python);
}

std::string fault(const std::string& text, JsonKind kind) {
  try {
    parse_json(text, "file:", "advice", kind);
  } catch (const UserError& error) {
    EXPECT_EQ(error.code, ExitCode::data);
    return error.what();
  }
  return "";
}

TEST(PythonJson, NumbersThatDoubleDoesNotHold) {
  const json value = python(
      R"({"a": NaN, "b": [Infinity, -Infinity], "c": 1e999, "d": -1E+400, "e": 1e-999, "f": 5})");
  EXPECT_EQ(kind_name(value["a"]), "NaN");
  EXPECT_EQ(kind_name(value["b"][0]), "Infinity");
  EXPECT_EQ(kind_name(value["b"][1]), "-Infinity");
  EXPECT_EQ(kind_name(value["c"]), "Infinity");
  EXPECT_EQ(kind_name(value["d"]), "-Infinity");
  EXPECT_EQ(value["e"], 0.0);
  EXPECT_EQ(value["f"], 5);
  for (const char* key : {"a", "b", "c", "d"}) EXPECT_FALSE(value[key].is_number()) << key;
  const std::string digits(400, '7');
  EXPECT_EQ(kind_name(python("[" + digits + "]")[0]), "Infinity");
  EXPECT_EQ(kind_name(python("[-" + digits + ".5]")[0]), "-Infinity");
  EXPECT_DOUBLE_EQ(python("[18446744073709551616]")[0].get<double>(), 0x1p64);
}

TEST(PythonJson, StringsAreLeftAlone) {
  const std::string text = R"({"NaN": "NaN, Infinity, \"-Infinity\" 1e999 \\", "x": "\\"})";
  EXPECT_TRUE(standard_json(text).text.empty());
  EXPECT_EQ(python(text), json::parse(text));
  EXPECT_EQ(kind_name(python(R"(["NaN"])")[0]), "string");
}

TEST(PythonJson, HalfSurrogatePairsAreReplaced) {
  EXPECT_EQ(python(R"(["\ud83d\ude00", "\uD83Dx", "\ude00", "\ud83d\ud83d\ude00", "\\ud83d"])"),
            (json{"\xF0\x9F\x98\x80", "\xEF\xBF\xBDx", "\xEF\xBF\xBD",
                  "\xEF\xBF\xBD\xF0\x9F\x98\x80", "\\ud83d"}));
}

TEST(PythonJson, TheLastOfTwoEqualKeysCounts) {
  EXPECT_EQ(python(R"({"a": 1, "b": {"c": 1, "c": 2}, "a": [3]})"),
            (json{{"a", {3}}, {"b", {{"c", 2}}}}));
}

TEST(PythonJson, FaultsStayFaultsAtTheirPlace) {
  for (const char* text :
       {"[NaNs]", "[nan]", "[+Infinity]", "[Inf]", "[01e999]", "[1.e999]", "[1e9.5]", "{NaN: 1}",
        "[1NaN]", "NaN NaN", "[\"\\ud83\"]", "[\"\\u", "\"NaN", "-", "[--Infinity]"})
    EXPECT_NE(fault(text, JsonKind::python).find("is not valid JSON (byte "), std::string::npos)
        << text << fault(text, JsonKind::python);
  // The place is that of the original text: after 30 × "NaN, " the fault is byte 152.
  std::string text = "[";
  for (int i = 0; i < 30; ++i) text += "NaN, ";
  EXPECT_NE(fault(text + "x]", JsonKind::python).find("(byte 152)"), std::string::npos)
      << fault(text + "x]", JsonKind::python);
  EXPECT_NE(fault("[\"\xFF\"]", JsonKind::python).find("is not UTF-8"), std::string::npos);
}

TEST(PythonJson, StrictIsStrict) {
  EXPECT_NE(fault("[NaN]", JsonKind::strict).find("not valid JSON"), std::string::npos);
  EXPECT_NE(fault("[1e999]", JsonKind::strict).find("beyond the range"), std::string::npos);
  EXPECT_NE(fault("[\"\\ud83d\"]", JsonKind::strict).find("not valid JSON"), std::string::npos);
  EXPECT_NE(fault(R"({"a": 1, "a": 1})", JsonKind::strict).find("\"a\" twice"), std::string::npos);
}

}  // namespace
}  // namespace qpipe
