#include "pipeline/commands/cli.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <vector>

#include "kernels/stream.h"
#include "launch/comm.h"
#include "launch/leave.h"
#include "pipeline/commands/fetch_inputs.h"
#include "pipeline/commands/path_option.h"
#include "pipeline/commands/quantize_words.h"
#include "pipeline/files/error.h"
#include "pipeline/files/terminal.h"
#include "pipeline/files/user_output.h"
#include "pipeline/model/checkpoint.h"
#include "pipeline/model/model.h"
#include "pipeline/quantize.h"

namespace qpipe {

namespace {

constexpr const char* usage =
    R"(qpipe quantizes a Hugging Face checkpoint into one that loads as it is.

  qpipe CONFIG.toml [--set section.key=value ...] [--resume] [--dry-run]
        quantize; the last --set of a key wins over the file. --dry-run checks the configuration,
        the model and the plan, prints the effective configuration, and writes nothing. The same
        command goes on with a run that was stopped; --resume (run.resume = "require") does only
        that. Runs on many GPUs under mpirun or srun: mpirun -np 8 qpipe CONFIG.toml
  qpipe quantize MODEL -o FOLDER [--method M] [--bits N] [--group-size N] [--desc-act] [--damp X]
             [--data DATA] [--samples N] [--seqlen N] [--asymmetric] [--eval DATA] [--set ...]
        the same without a configuration file; --help says which options are whose
  qpipe compare CONFIG.toml --methods gptq,awq,bnb-nf4,rtn [--set section.key=value ...]
             [--out FILE-STEM] [--dry-run]
        quantize with each method into OUTPUT-METHOD and print one table: perplexity, size, time,
        who loads it; also under mpirun
  qpipe plan CONFIG.toml [--ranks N] [--teams P] [--ranks-per-node N] [--gpu-memory SIZE]
             [--host-memory SIZE] [--tflops X] [--rate NAME=X ...] [--set section.key=value ...]
             [--json FILE]
        whether it fits: memory, disk, traffic and time of a run; needs no GPU, and of the model
        config.json alone
  qpipe eval --model DIR --data FILE [--samples N] [--seqlen N] [--dataset NAME]
             [--text-field FIELD] [--backend auto|cpu|cuda] [--logits OUT.safetensors]
        perplexity of an original or a quantized checkpoint; also under mpirun
  qpipe tokenize --model DIR --data FILE --out FILE.h5 [--samples N] [--seqlen N] [--seed N]
             [--mode windows|documents|sequential] [--text-field FIELD]
        text to token ids, for calibration.data and evaluate.data
  qpipe verify DIR [--original DIR] [--json FILE]
        a quantized checkpoint against its format, and, given the original, the error of every
        weight; needs no GPU
  qpipe push DIR ORG/NAME [--private] [--create-pr] [--revision R]
        a quantized folder, after verify has found no fault, to the Hugging Face hub
  qpipe families [DIR ...] [--json]
        the model_types that qpipe reads; of a model's folder, what its layers are
  qpipe --help | --version
        MODEL, --model, --original and model.path also take ORG/NAME[@REVISION] of the hub, and data
        hf:ORG/NAME[/CONFIG]:SPLIT: HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured
        `qpipe COMMAND --help` tells a command's options and defaults

Exit codes: 0 done, 64 wrong arguments, 65 damaged data, 66 missing input, 69 unsupported here,
70 defect of qpipe, 71 the machine or another rank failed, 73 or 74 output cannot be written,
75 stopped by a signal (71, 75: the same command goes on), 78 wrong configuration.

Options of CONFIG.toml:

)";

std::string version_text() {
  return fmt::format("qpipe {} (backends: {})\n", QPIPE_VERSION, has_cuda ? "cpu, cuda" : "cpu");
}

[[noreturn]] void usage_fault(const std::string& message) {
  throw UserError(ExitCode::usage, message + "; `qpipe --help` lists the commands and options");
}

// Logs go to stderr: stdout is for results.
void set_log_level(const std::string& level) {
  if (spdlog::get("qpipe") == nullptr) spdlog::set_default_logger(spdlog::stderr_color_mt("qpipe"));
  spdlog::set_level(spdlog::level::from_str(level));
}

int run(const ShowText& command) {
  print_result(command.text);
  return static_cast<int>(ExitCode::ok);
}

int run(const QuantizeRequest& command) {
  set_log_level(command.options.run.log_level);
  if (command.dry_run && world().rank == 0) {
    print_result(options_as_toml(command.options));
    finish_results();
  }
  quantize(command.options, command.dry_run, {}, {}, command.begin, [&] {
    leave_at_once(static_cast<int>(ExitCode::ok),
                  std::chrono::seconds(command.options.parallel.timeout));
  });
  return static_cast<int>(ExitCode::ok);
}

int run(const CompareRequest& command) {
  set_log_level(command.options.front().run.log_level);
  return run_compare(command);
}

int run(const EvalRequest& command) { return run_eval(command); }

int run(const VerifyRequest& command) {
  if (!command.json.empty()) check_user_output(command.json, "--json");  // before the work
  return run_verify(command);
}

int run(const PlanRequest& command) {
  if (!command.json.empty()) check_user_output(command.json, "--json");
  return run_plan(command);
}

int run(const FamiliesRequest& command) { return run_families(command); }

int run(const PushRequest& command) { return run_push(command); }

int run(const TokenizeRequest& command) {
  user_output_file(command.out);  // before the work
  const Checkpoint checkpoint(command.model);
  DatasetRequest request = command.dataset;
  request.tokenizer = command.model;
  request.vocab = read_architecture(checkpoint).vocab;
  const Tokens tokens = load_tokens(request);
  write_tokens_hdf5(tokens, command.out, request.dataset);
  print_result("{}: /{} [{}, {}], from {}\n", command.out.string(), request.dataset, tokens.samples,
               tokens.seqlen, tokens.source);
  return static_cast<int>(ExitCode::ok);
}

// What the parser is told and where it puts the answers.
struct Arguments {
  CLI::App app{"qpipe", "qpipe"};
  CLI::App* compare = nullptr;
  CLI::App* eval = nullptr;
  CLI::App* families = nullptr;
  CLI::App* plan = nullptr;
  CLI::App* push = nullptr;
  CLI::App* quantize = nullptr;
  CLI::App* tokenize = nullptr;
  CLI::App* verify = nullptr;
  std::string config;
  std::vector<std::string> sets;
  bool dry_run = false;
  bool resume = false;
  bool help = false;
  bool version = false;
  std::string compare_config;
  std::string compare_methods;
  std::vector<std::string> compare_sets;
  std::string compare_out;
  bool compare_dry_run = false;
  std::string plan_config;
  std::vector<std::string> plan_sets;
  PlanRequest plan_request;
  PushRequest push_request;
  QuantizeWords quantize_words;
  EvalRequest eval_request;
  FamiliesRequest families_request;
  TokenizeRequest tokenize_request;
  VerifyRequest verify_request;
  std::string tokenize_data;
  std::string tokenize_out;

  Arguments() {
    app.set_help_flag();
    app.add_flag("-h,--help", help);
    app.add_flag("--version", version);
    app.add_option("config", config)->transform(as_path);
    app.add_option("--set", sets)->allow_extra_args(false);
    app.add_flag("--dry-run", dry_run);
    app.add_flag("--resume", resume);
    add_compare();
    add_plan();
    add_eval();
    add_tokenize();
    add_verify();
    add_push();
    quantize = app.add_subcommand("quantize");
    quantize_words.add_to(*quantize);
  }

 private:
  void add_compare() {
    compare = app.add_subcommand(
        "compare",
        "Quantizes one model with several methods; one table of quality, size, time and loaders.");
    compare->set_help_flag("-h,--help", "this text");
    compare->add_option("config", compare_config, "configuration file; needs evaluate.data")
        ->required()
        ->transform(as_path);
    compare
        ->add_option("--methods", compare_methods,
                     "names of quantize.method divided by commas, each with settings of "
                     "[quantize], [awq] or [bnb] after a colon: "
                     "gptq,gptq:act_group_aware=true,mse=2.4,bnb-nf4")
        ->required();
    compare->add_option("--set", compare_sets, "section.key=value, for all methods")
        ->allow_extra_args(false);
    compare
        ->add_option("--out", compare_out,
                     "stem of the files STEM.json and STEM.md; without: OUTPUT.compare")
        ->transform(as_path);
    compare->add_flag("--dry-run", compare_dry_run,
                      "check every method against the model; write nothing");
  }

  void add_plan() {
    plan = app.add_subcommand("plan",
                              "Whether a run fits: memory by purpose, disk, traffic and time. Exit "
                              "code 78 when it does not.");
    plan->set_help_flag("-h,--help", "this text");
    plan->add_option("config", plan_config,
                     "configuration file; of model.path, config.json is enough")
        ->required()
        ->transform(as_path);
    plan->add_option("--ranks", plan_request.ranks, "how many GPUs")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    plan->add_option("--teams", plan_request.teams,
                     "teams that the ranks form, each with a layer of its own; 0: parallel.teams, "
                     "which is automatic by itself")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    plan->add_option("--ranks-per-node", plan_request.ranks_per_node,
                     "ranks on one machine; 0: all")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    plan->add_option("--gpu-memory", plan_request.gpu_memory,
                     "of each card, such as 22GiB; without: memory.gpu, if it is a size");
    plan->add_option(
        "--host-memory", plan_request.host_memory,
        "of each machine, such as 200GiB; without: memory.host of each rank, if it is a size");
    plan->add_option("--tflops", plan_request.tflops,
                     "of the card in dense bfloat16, to scale the H100's rates; an H100 has 989")
        ->check(CLI::PositiveNumber);
    plan->add_option("--rate", plan_request.rates,
                     "a rate that times are estimated with: " + rates_help())
        ->allow_extra_args(false);
    plan->add_option("--set", plan_sets, "section.key=value; the last one of a key wins")
        ->allow_extra_args(false);
    plan->add_option("--json", plan_request.json, "file to write all figures to")
        ->transform(as_path);
  }

  void add_eval() {
    eval = app.add_subcommand("eval",
                              "Perplexity of a checkpoint, original or quantized, on consecutive "
                              "windows of tokens or text.");
    add_input(*eval, eval_request.model, eval_request.data, eval_request.text_field);
    eval->add_option("--dataset", eval_request.dataset,
                     "name of the token ids in an .h5 or .safetensors file")
        ->capture_default_str();
    eval->add_option("--samples", eval_request.samples, "how many windows; 0: all")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    eval->add_option("--seqlen", eval_request.seqlen, "tokens of each window")
        ->check(CLI::Range(2, 1 << 24))
        ->capture_default_str();
    eval->add_option("--backend", eval_request.backend, "where to compute")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
        ->capture_default_str();
    eval->add_option("--logits", eval_request.logits,
                     "safetensors file to write all logits to, float32 [samples, seqlen, vocab]")
        ->transform(as_path);
  }

  void add_tokenize() {
    DatasetRequest& dataset = tokenize_request.dataset;
    dataset.samples = 128;
    dataset.seqlen = 2048;
    tokenize = app.add_subcommand("tokenize",
                                  "Text to token ids: int32 [samples, seqlen] in an HDF5 file.");
    add_input(*tokenize, tokenize_request.model, tokenize_data, dataset.text_field);
    tokenize->add_option("--out", tokenize_out, "HDF5 file to write")
        ->required()
        ->transform(as_path);
    tokenize
        ->add_option("--samples", dataset.samples,
                     "how many samples; 0: all there are (not for windows)")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    tokenize->add_option("--seqlen", dataset.seqlen, "tokens of each sample")
        ->check(CLI::Range(1, 1 << 24))
        ->capture_default_str();
    tokenize->add_option("--seed", dataset.seed, "of the random choice")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    tokenize
        ->add_option("--mode", dataset.mode,
                     "random windows of the concatenated text, the start of each document, or "
                     "consecutive windows from the start")
        ->check(CLI::IsMember({"windows", "documents", "sequential"}))
        ->capture_default_str();
  }

  void add_verify() {
    verify = app.add_subcommand("verify",
                                "Checks a quantized checkpoint against its format. Exit code 65, "
                                "and a line for each fault.");
    verify->set_help_flag("-h,--help", "this text");
    verify->add_option("folder", verify_request.folder, "folder of the quantized checkpoint")
        ->required()
        ->transform(as_path);
    verify
        ->add_option("--original", verify_request.original,
                     "folder of the model that was quantized: tells the error of every weight")
        ->transform(as_path);
    verify->add_option("--json", verify_request.json, "file to write the report to")
        ->transform(as_path);

    families = app.add_subcommand("families",
                                  "The model_types that are read; of folders with a config.json, "
                                  "what their layers are.");
    families->set_help_flag("-h,--help", "this text");
    families->add_option("folders", families_request.models, "folders of models")
        ->transform(as_path);
    families->add_flag("--json", families_request.json, "print JSON");
  }

  void add_push() {
    push = app.add_subcommand("push",
                              "Pushes a quantized folder to the Hugging Face hub, in one commit, "
                              "after verify has found no fault. What broke off goes on.");
    push->set_help_flag("-h,--help", "this text");
    push->add_option("folder", push_request.folder, "folder of a finished run")
        ->required()
        ->transform(as_path);
    push->add_option("repository", push_request.target.repository, "ORG/NAME; made if need be")
        ->required();
    push->add_flag("--private", push_request.target.is_private, "a new repository is private");
    push->add_flag("--create-pr", push_request.target.create_pr,
                   "open a pull request instead of a commit");
    push->add_option("--revision", push_request.target.revision, "branch; made if need be");
  }

  static void add_input(CLI::App& command, std::string& model, std::string& data,
                        std::string& text_field) {
    command.set_help_flag("-h,--help", "this text");
    command.add_option("--model", model, "folder of the checkpoint, or ORG/NAME[@REVISION]")
        ->required()
        ->transform(as_path);
    command
        .add_option(
            "--data", data,
            "token ids (.h5, .safetensors), text or rows (.txt, .jsonl, .parquet, also with "
            ".gz or .zst), or hf:ORG/NAME[/CONFIG]:SPLIT")
        ->required()
        ->transform(as_path);
    command.add_option("--text-field", text_field, "field of each row that holds the text")
        ->capture_default_str();
  }
};

void require_input(const std::string& option, const std::string& path, bool folder) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  const auto fault = [&](const std::string& message) {
    throw UserError(ExitCode::no_input, option + " " + path + ": " + message);
  };
  if (folder ? hub_model(path).has_value() : hub_data(path, option + " ").has_value()) return;
  if (!std::filesystem::exists(status)) fault(folder ? "no such folder" : "no such file");
  if (folder && !std::filesystem::is_directory(status))
    fault("is a file; give the folder that holds config.json and the safetensors");
  if (!folder && std::filesystem::is_directory(status)) fault("is a folder; give a file");
}

}  // namespace

bool is_collective(const Command& command) {
  return std::holds_alternative<QuantizeRequest>(command) ||
         std::holds_alternative<CompareRequest>(command) ||
         std::holds_alternative<EvalRequest>(command);
}

bool can_go_on_later(const Command& command) {
  if (const auto* request = std::get_if<QuantizeRequest>(&command)) return !request->dry_run;
  return std::holds_alternative<CompareRequest>(command) ||
         std::holds_alternative<TokenizeRequest>(command) ||
         std::holds_alternative<PushRequest>(command);
}

std::chrono::seconds timeout_of(const Command& command) {
  const auto of = [](const Options& options) {
    return std::chrono::seconds(options.parallel.timeout);
  };
  if (const auto* request = std::get_if<QuantizeRequest>(&command)) return of(request->options);
  if (const auto* request = std::get_if<CompareRequest>(&command))
    return of(request->options.front());
  return Comm::Options{}.timeout;
}

int run_command(const Command& command) {
  return std::visit([](const auto& request) { return run(request); }, command);
}

Command read_command(int argc, const char* const* argv) {
  const auto begin = std::chrono::steady_clock::now();
  Arguments arguments;
  try {
    arguments.app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return ShowText{arguments.app.get_subcommands().front()->help()};
  } catch (const CLI::ParseError& error) {
    usage_fault(error.what());
  }
  if (arguments.help) return ShowText{usage + options_help()};
  if (arguments.version) return ShowText{version_text()};
  const bool subcommand = *arguments.compare || *arguments.plan || *arguments.eval ||
                          *arguments.tokenize || *arguments.verify || *arguments.families ||
                          *arguments.push || *arguments.quantize;
  if (subcommand && (!arguments.config.empty() || !arguments.sets.empty() || arguments.dry_run ||
                     arguments.resume))
    usage_fault(
        "a configuration file and --set stand behind `compare` and `plan`, --dry-run behind "
        "`compare`; they do not go with eval, tokenize, verify, push and families; --resume goes "
        "with a configuration file or behind `quantize`");

  if (*arguments.compare) {
    CompareRequest request = read_compare(arguments.compare_config, arguments.compare_methods,
                                          arguments.compare_sets, arguments.compare_out);
    request.dry_run = arguments.compare_dry_run;
    for (Options& options : request.options) fetch_inputs(options);
    return request;
  }
  if (*arguments.plan) {
    PlanRequest request = arguments.plan_request;
    request.options = load_options(arguments.plan_config, arguments.plan_sets, Inputs::unchecked);
    require_input("model.path", request.options.model.path, true);
    request.options.model.path = local_model(request.options.model.path, HubPart::config);
    return request;
  }
  if (*arguments.eval) {
    require_input("--model", arguments.eval_request.model, true);
    require_input("--data", arguments.eval_request.data, false);
    EvalRequest request = arguments.eval_request;
    request.model = local_model(request.model);
    request.data = local_data(request.data);
    return request;
  }
  if (*arguments.tokenize) {
    TokenizeRequest request = arguments.tokenize_request;
    request.dataset.data = arguments.tokenize_data;
    request.out = arguments.tokenize_out;
    require_input("--model", request.model, true);
    require_input("--data", arguments.tokenize_data, false);
    if (request.out.extension() != ".h5" && request.out.extension() != ".hdf5")
      usage_fault("--out must end in .h5 or .hdf5");
    request.model = local_model(request.model);
    request.dataset.data = local_data(arguments.tokenize_data);
    return request;
  }
  if (*arguments.verify) {
    VerifyRequest request = arguments.verify_request;
    require_input("verify", request.folder.string(), true);
    if (!request.original.empty()) {
      require_input("--original", request.original.string(), true);
      request.original = local_model(request.original.string());
    }
    return request;
  }
  if (*arguments.push) {
    const PushRequest& request = arguments.push_request;
    if (!std::filesystem::is_directory(request.folder))
      throw UserError(ExitCode::no_input, "push " + request.folder.string() + ": no such folder");
    if (!is_hub_name(request.target.repository))
      usage_fault("push " + request.target.repository + ": a repository is ORG/NAME");
    return request;
  }
  if (*arguments.quantize) {
    QuantizeRequest request{arguments.quantize_words.options(), arguments.quantize_words.dry_run(),
                            begin};
    fetch_inputs(request.options);
    return request;
  }
  if (*arguments.families) return arguments.families_request;
  if (arguments.config.empty())
    usage_fault(
        "give a configuration file (qpipe CONFIG.toml) or a command (quantize, compare, plan, "
        "eval, tokenize, verify, push, families)");
  if (arguments.resume) arguments.sets.emplace_back("run.resume=require");
  QuantizeRequest request{load_options(arguments.config, arguments.sets), arguments.dry_run, begin};
  fetch_inputs(request.options);
  return request;
}

}  // namespace qpipe
