#!/usr/bin/env python3
"""Do the tests notice? mutate.py [--build FOLDER] [--only TEXT] [--first N]: changes lines of the sources one at a time, builds the fitting unit
test, runs it, and says which changes nobody noticed.

Works in a copy of the tracked files (FOLDER/source; ccache makes the first build short). A line of the list that is not exactly once in its file
is stale, and an error: the list has to follow the sources."""
import argparse
import collections
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
# file: program of its tests: (what is there, what stands there instead)
CHANGES = {
    ("pipeline/options/sizes.cpp", "pipeline_sizes_test"): [
        ("!(bytes >= 1.0)", "!(bytes >= 0.0)"),
        ("{\"KB\", 1e3}", "{\"KB\", 1024}"),
        ("text[digits] == ' ' ? digits + 1", "text[digits] == ' ' ? digits"),
        ("bytes >= 0x1p53", "bytes >= 0x1p54"),
        ("std::int64_t{1} << 27", "std::int64_t{1} << 37"),
    ],
    ("pipeline/files/printable.cpp", "pipeline_printable_test"): [
        ("lead < 0xC2", "lead < 0xC0"),
        ("text.size() < bytes", "text.size() + 1 < bytes"),
        ("code < 0xE000", "code < 0xDC00"),
        ("code > 0x10FFFF", "code > 0x1FFFFF"),
        ("code <= 0x202E", "code < 0x202E"),
        ("character.code < 0xA0", "character.code < 0x80"),
        ("result.size() <= most ||", "result.size() < most ||"),
        ("result.size() - (kept - head)", "result.size() - (kept - head) - 9"),
        ("text.size() > 2 * most + 8", "text.size() > most"),
    ],
    ("launch/share.cpp", "launch_share_test"): [
        ("rank < larger ? 1 : 0", "rank <= larger ? 1 : 0"),
        ("std::min<std::int64_t>(rank, larger)", "std::max<std::int64_t>(rank, larger)"),
        ("(count + block - 1) / block", "count / block"),
        ("first += blocks_of(count);", ""),
        ("costs[a] > costs[b]", "costs[a] < costs[b]"),
        ("*least += costs[task];", ""),
        ("blocks < 0 || ranks < 1", "ranks < 1"),
    ],
    ("pipeline/output/shard_plan.cpp", "pipeline_shard_plan_test"): [
        ("tensors[i].bytes() > max_bytes", "tensors[i].bytes() >= max_bytes"),
        ("!shards.back().empty() && ", ""),
        ("      bytes = 0;\n", ""),
        ("shard + 1, shards", "shard, shards"),
        ("total += tensors[i].bytes();", ""),
    ],
    ("stages/column_order.cpp", "stages_column_order_test"): [
        ("diagonal[a] > diagonal[b]", "diagonal[a] >= diagonal[b]"),
        ("std::stable_sort", "std::sort"),
        ("*std::max_element", "*std::min_element"),
        ("group_size <= 0 || ", ""),
    ],
    ("pipeline/schedule.cpp", "pipeline_schedule_test"): [
        ("teams.teams == 1", "teams.teams == 2"),
        ("layer + 1 < end()", "layer < end()"),
        ("!is_finished(layer)  ?", "is_finished(layer)  ?"),
        ("std::min(size, layers() - first)", "size"),
        ("? Travel::hand_over", "? Travel::stream"),
    ],
    ("pipeline/plan/module_names.cpp", "pipeline_module_names_test"): [
        ("a.size() < b.size() : a < b", "a.size() > b.size() : a < b"),
        ("if (taken.contains(name)) {", "if (false) {"),
        ("if (!inside.contains(root)) roots", "roots"),
        ("!part.empty() && part.find", "part.find"),
        ("(last == \"down_proj\") ==", "(last == \"down_proj\") !="),
        ("tensor.shape.size() == 2 && last", "last"),
    ],
    ("pipeline/model/safetensors.cpp", "pipeline_safetensors_test"): [
        ("if (begin > end)\n", "if (begin >= end)\n"),
        ("entry->range.begin < end)", "entry->range.begin + 1 < end)"),
        ("entry->range.begin > end)", "false)"),
        ("entry->range.end > data_bytes)", "entry->range.end > data_bytes + 1)"),
        ("if (end < data_bytes)", "if (false)"),
        ("value.size() != 3", "value.size() < 3"),
        ("*bytes != end - begin", "*bytes > end - begin"),
        ("size < 0 || __builtin", "__builtin"),
        ("value[\"shape\"].size() > most_dimensions", "value[\"shape\"].size() >= most_dimensions"),
        ("file.bytes() < length_bytes)", "file.bytes() <= length_bytes)"),
    ],
    ("pipeline/files/json_text.cpp", "pipeline_checkpoint_test"): [
        ("levels_.size() >= most_levels", "levels_.size() > most_levels"),
        ("!levels_.back().insert(name).second", "false"),
        ("read_text_file(path, most_json_bytes)", "read_text_file(path, 2 * most_json_bytes)"),
    ],
    ("pipeline/files/suggest.cpp", "pipeline_options_test"): [
        ("distance < best_distance", "distance <= best_distance"),
        ("name.size() / 3) + 1", "name.size() / 3)"),
        ("before[j - 2] + 1", "before[j - 2] + 2"),
    ],
    ("pipeline/data/windows.cpp", "pipeline_dataset_test"): [
        ("tokens - seqlen + 1)", "tokens - seqlen)"),
        ("-bound % bound", "0 * bound"),
        ("count - i)", "count - i - 1)"),
    ],
    ("pipeline/journal/journal.cpp", "pipeline_journal_test"): [
        ("finished.at(\"manifest\") == hash_of_manifest(options.output.path)", "true"),
        ("json.at(\"parts\").get_to(r.parts);", ""),
        ("record.value(\"output\", Json()) != output_name(options)", "false"),
    ],
}


def run(words, log, **more):
    return subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, **more).returncode


def copy_sources(to):
    """Only what has changed, so that the build goes on where the last one was."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")[:-1]
    for name in names:
        source, target = os.path.join(ROOT, name), os.path.join(to, name)
        if not os.path.isfile(source):
            continue
        with open(source, "rb") as f:
            data = f.read()
        if os.path.exists(target):
            with open(target, "rb") as f:
                if f.read() == data:
                    continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(source, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "mutate"))
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--first", type=int, default=1000, help="how many changes of each file")
    parser.add_argument("--jobs", default="2")
    args = parser.parse_args()
    source, build = os.path.join(args.build, "source"), os.path.join(args.build, "build")
    os.makedirs(args.build, exist_ok=True)
    copy_sources(source)
    env = dict(os.environ, CCACHE_BASEDIR=os.path.commonpath([ROOT, source]), CCACHE_NOHASHDIR="1")
    figures, begin = collections.Counter(), time.monotonic()
    with open(os.path.join(args.build, "log"), "w") as log:
        words = ["cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DQPIPE_CUDA=OFF", "-DQPIPE_WERROR=OFF",
                 f"-DQPIPE_SHARED={os.environ.get('QPIPE_SHARED', os.path.join(ROOT, '..', 'shared'))}"]
        if shutil.which("ccache"):
            words.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
        if run(words, log, env=env):
            sys.exit(f"cannot configure; see {log.name}")
        for (name, program), changes in CHANGES.items():
            if args.only not in name:
                continue
            path = os.path.join(source, name)
            with open(path) as f:
                text = f.read()
            build_words = ["cmake", "--build", build, "--target", program, "-j", args.jobs]
            test = [os.path.join(build, "tests", program), "--gtest_brief=1"]
            if run(build_words, log, env=env) or run(test, log, cwd=build, timeout=600):
                print(f"{name}: {program} fails without any change; see {log.name}")
                figures["not tried"] += len(changes[:args.first])
                continue
            for before, after in changes[:args.first]:
                if text.count(before) != 1:
                    print(f"STALE {name}: {text.count(before)} times: {before}")
                    figures["stale"] += 1
                    continue
                with open(path, "w") as f:
                    f.write(text.replace(before, after))
                if run(build_words, log, env=env):
                    result = "noticed by the compiler"
                else:
                    try:
                        result = "noticed" if run(test, log, cwd=build, timeout=120) else "NOT NOTICED"
                    except subprocess.TimeoutExpired:
                        result = "noticed (no end)"
                figures[result] += 1
                if result == "NOT NOTICED":
                    print(f"{result} by {program}: {name}: {before}  ->  {after}", flush=True)
            with open(path, "w") as f:
                f.write(text)
    print(f"{sum(figures.values())} changes in {time.monotonic() - begin:.0f} s: " + ", ".join(f"{n} {what}" for what, n in sorted(figures.items())))
    return 1 if figures["stale"] else 0


if __name__ == "__main__":
    sys.exit(main())
