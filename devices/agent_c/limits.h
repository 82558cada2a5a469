/* What this machine can do at most: reading memory, multiplying. Through the runtime's own matrix product, which every thread of the
   plan takes part in, so that nothing is compiled for a certain CPU. */
#ifndef ARCHSEARCH_LIMITS_H
#define ARCHSEARCH_LIMITS_H

#include "plan.h"
#include "runtime.h"
#include "timing.h"

typedef struct {
  const char *name; /* devices.plan.LimitResult's `limit` */
  int64_t amount;   /* bytes read, or floating-point operations, of each sample */
  char method[160];
} Limit;

enum { LIMIT_COUNT = 2 };

/* Measure a limit by its number, at least `min_runs` and `min_time_ns` of samples. */
bool limit_measure(const Runtime *runtime, const Plan *plan, int number, Limit *limit, Samples *samples, Failure *failure);

#endif
