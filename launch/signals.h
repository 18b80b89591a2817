// Signals that ask a run to stop: SIGUSR1 (batch systems), SIGTERM, SIGINT, SIGHUP (the terminal is
// gone) and SIGXCPU (the limit of processor time is near).
#pragma once

namespace qpipe {

// Until count_stop_signals they wait, also over an exec: a program that is being loaded would end.
// Takes a system call and nothing else, so that it can be called before everything.
void hold_stop_signals();

// From now on the first two are counted, for the run to stop where it can go on later; the third
// ends the process as it always would. They count also where whoever started the process had them
// blocked or ignored; only SIGHUP stays ignored, which is what nohup asks for.
void count_stop_signals();

// For work that has nothing to go on with: they end the process again, and one that was counted
// ends it now.
void end_at_stop_signals();

// Of this process.
int signals_received();

}  // namespace qpipe
