#define _GNU_SOURCE
#include "timing.h"

#include <time.h>

static int64_t read_clock(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int64_t now_ns(void) { return read_clock(CLOCK_MONOTONIC); }

static void make_room(Samples *samples) {
  if (samples->count < samples->room) return;
  samples->room = samples->room ? 2 * samples->room : 1024;
  samples->wall_ns = need_resized(samples->wall_ns, samples->room * sizeof *samples->wall_ns);
  samples->cpu_ns = need_resized(samples->cpu_ns, samples->room * sizeof *samples->cpu_ns);
}

bool timed_runs(const Timed *timed, const Plan *plan, Samples *samples, Failure *failure) {
  const bool cpu = plan->threads == 1;
  samples->count = 0;
  for (int64_t i = 0; i < plan->warmup_runs; i++)
    if (!timed->run(timed->context, failure)) return false;
  const int64_t begun = now_ns();
  int64_t next_look = begun + LOOK_EVERY_NS;
  for (;;) {
    int64_t now = now_ns();
    if (samples->count >= (size_t)plan->min_runs && now - begun >= plan->min_time_ns) return true;
    if (timed->look && now >= next_look) {
      timed->look(timed->context);
      next_look = now_ns() + LOOK_EVERY_NS;
    }
    make_room(samples);
    int64_t cpu_before = cpu ? read_clock(CLOCK_THREAD_CPUTIME_ID) : 0;
    int64_t before = now_ns();
    if (!timed->run(timed->context, failure)) return false;
    int64_t after = now_ns();
    samples->cpu_ns[samples->count] = cpu ? read_clock(CLOCK_THREAD_CPUTIME_ID) - cpu_before : 0;
    samples->wall_ns[samples->count++] = after - before;
  }
}
