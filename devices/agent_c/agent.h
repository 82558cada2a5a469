/* One series: load every model, then measure all cases as the plan says, one line of JSON an event. */
#ifndef ARCHSEARCH_AGENT_H
#define ARCHSEARCH_AGENT_H

#include "bound.h"
#include "machine.h"
#include "plan.h"
#include "runtime.h"
#include "timing.h"

/* Raised when the way of measuring changes. 1: first. */
#define AGENT_VERSION "c-1"

/* What the agent knows of a case beyond the plan. */
typedef struct {
  const Case *item;
  Bound *bound; /* NULL before it is loaded, and when it has failed */
  int64_t loaded_bytes, load_peak_bytes;
} Subject;

typedef struct {
  Plan plan;
  const Runtime *runtime;
  Subject *subjects; /* one for each case of the plan */
  Watch watch;
  MachineState before, after;
  Samples samples;
  uint64_t random;
  int output; /* where events go */
  bool emulated;
  const Subject *current; /* whose round is running, and which */
  int64_t round;
  Line line;
} Agent;

/* Work through the plan. */
void agent_run(Agent *agent);

#endif
