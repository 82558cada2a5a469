/* One series of measurements, as the host asks for it: devices/plan.py's RunPlan, whose documentation holds here, too. */
#ifndef ARCHSEARCH_PLAN_H
#define ARCHSEARCH_PLAN_H

#include <stdint.h>

#include "failure.h"

typedef enum { FILL_ZEROS, FILL_NORMAL, FILL_CONSTANT, FILL_INTEGERS } Fill;
typedef enum { FOR_LATENCY, FOR_MEMORY, FOR_OUTPUTS, FOR_LIMITS } Purpose;

typedef struct {
  const char *name, *dtype;
  int64_t *shape;
  size_t rank;
  Fill fill;
  double value, scale;
  uint64_t high;
} Feed;

typedef struct {
  const char *input, *output;
  bool shared;
} StatePair;

typedef struct {
  const char *case_id, *model;
  Feed *feeds;
  StatePair *states;
  size_t feed_count, state_count;
} Case;

typedef struct {
  const char *case_id;
  int64_t round;
} Done;

typedef struct {
  Case *cases;
  size_t case_count;
  Purpose purpose;
  int64_t threads, rounds, warmup_runs, min_runs, min_time_ns;
  int *cores; /* NULL: the agent chooses */
  size_t core_count;
  Done *done;
  size_t done_count;
  bool allow_spinning, memory_arena, memory_limited;
  uint64_t memory_limit_bytes;
  double max_wait_s, max_temperature_c;
  uint64_t seed;
} Plan;

/* Read a plan from its line of JSON; `text` must live as long as the plan. The failure names the field. */
bool plan_read(char *text, size_t length, Plan *plan, Failure *failure);

/* Whether an earlier, interrupted series has measured this round of this case. */
bool plan_is_done(const Plan *plan, const char *case_id, int64_t round);

#endif
