// main of the *_mpi_test programs: every rank runs every test, rank 0 prints, and every rank fails
// when one does.
#include <gtest/gtest.h>

#include <iostream>
#include <optional>

#include "kernels/blas_kernels.h"
#include "launch/comm.h"

namespace {

// What ranks other than 0 print: their failures. A rank that leaves a test early (ASSERT,
// exception) is no longer in step with the others, who may wait for it in a collective: it ends the
// job.
class RankListener : public testing::EmptyTestEventListener {
 public:
  RankListener(int rank, int ranks) : rank_(rank), ranks_(ranks) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    if (rank_ != 0)
      std::cerr << "rank " << rank_ << ": "
                << (result.file_name() == nullptr ? "" : result.file_name()) << ":"
                << result.line_number() << ": " << result.message() << std::endl;
    if (result.fatally_failed() && ranks_ > 1) left_early_ = true;
  }
  void OnTestEnd(const testing::TestInfo& test) override {
    if (!left_early_) return;
    std::cerr << "rank " << rank_ << " left " << test.test_suite_name() << "." << test.name()
              << " early: the job ends" << std::endl;
    qpipe::abort_all_ranks(1);
  }

 private:
  int rank_;
  int ranks_;
  bool left_early_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  qpipe::restart_with_better_blas_kernels(argv);
  const qpipe::MpiSession session(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  qpipe::Stream stream(qpipe::Backend::cpu, 0);
  qpipe::Comm comm(stream, {std::chrono::seconds(300), false});
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (!comm.root()) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new RankListener(comm.rank(), comm.size()));
  const int result = RUN_ALL_TESTS();
  std::optional<qpipe::Comm::Fault> failure;
  if (result != 0) failure = {1, "rank " + std::to_string(comm.rank()) + " failed"};
  failure = comm.agree(failure);
  if (comm.root() && failure) std::cerr << failure->message << std::endl;
  return failure ? 1 : 0;
}
