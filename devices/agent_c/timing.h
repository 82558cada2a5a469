/* The clocks, and the timed loop. */
#ifndef ARCHSEARCH_TIMING_H
#define ARCHSEARCH_TIMING_H

#include <stdint.h>

#include "failure.h"
#include "plan.h"

/* Between two timed runs, once a second, somebody may look at the machine; never within a run. */
enum { LOOK_EVERY_NS = 1000000000 };

typedef struct {
  bool (*run)(void *context, Failure *failure);
  void (*look)(void *context);
  void *context;
} Timed;

/* Wall and CPU nanoseconds of every timed run; the room is kept from round to round. */
typedef struct {
  int64_t *wall_ns, *cpu_ns;
  size_t count, room;
} Samples;

int64_t now_ns(void);

/* Untimed warm-up, then runs until both `min_runs` and `min_time_ns` are reached. The CPU time is that of this thread, so it is
   taken where the plan has one thread only. */
bool timed_runs(const Timed *timed, const Plan *plan, Samples *samples, Failure *failure);

#endif
