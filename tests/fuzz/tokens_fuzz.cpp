// Files of token ids. An input that begins as HDF5 does is one, others are safetensors.
#include "pipeline/data/token_file.h"
#include "tests/fuzz/fuzz.h"

void qpipe::fuzz::run_input(std::string_view input) {
  const bool hdf5 = input.starts_with("\x89HDF");
  const std::filesystem::path path = write_file(hdf5 ? "a.h5" : "a.safetensors", input);
  const Tokens tokens = read_token_file(path, "input_ids", 0, 0);
  if (tokens.ids.size() != static_cast<std::size_t>(tokens.samples * tokens.seqlen))
    fail("ids that do not fill [samples, seqlen]");
}
