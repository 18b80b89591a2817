// Signals that ask a run to stop: SIGUSR1 (batch systems), SIGTERM and SIGINT.
#pragma once

namespace qpipe {

// From now on the first two are counted, for the run to stop where it can go on later; the third
// ends the process as it always would.
void count_stop_signals();

// Of this process.
int signals_received();

}  // namespace qpipe
