#include "agent.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cores.h"
#include "limits.h"
#include "memory.h"
#include "sha256.h"

/* -- talking to the host --------------------------------------------------------------------------------------------------- */

static Line *event(Agent *agent, const char *name, const char *case_id) {
  put(&agent->line, "{\"event\": \"%s\"", name);
  if (case_id) {
    put(&agent->line, ", \"case_id\": ");
    put_string(&agent->line, case_id);
  }
  return &agent->line;
}

static void emit(Agent *agent) {
  put(&agent->line, "}");
  send_line(&agent->line, agent->output);
}

static void doing(Agent *agent, const char *case_id) {
  event(agent, "doing", case_id);
  emit(agent);
}

static void report_failure(Agent *agent, const char *case_id, const char *reason, Failure *failure) {
  Line *line = event(agent, "failed", case_id);
  put(line, ", \"reason\": \"%s\", \"detail\": ", is_out_of_memory(failure) ? "out_of_memory" : reason);
  flatten(failure);
  put_string(line, *failure->text ? failure->text : "no reason given");
  emit(agent);
}

static void put_bytes(Line *line, const char *name, int64_t bytes) {
  put(line, ", \"%s\": ", name);
  put(line, bytes < 0 ? "null" : "%lld", (long long)bytes);
}

static void put_states(Agent *agent, const MachineState *before, const MachineState *after) {
  put(&agent->line, ", \"before\": ");
  put_state(&agent->line, before);
  put(&agent->line, ", \"after\": ");
  put_state(&agent->line, after);
}

static void put_samples(Agent *agent) {
  put(&agent->line, ", \"wall_ns\": ");
  put_whole_numbers(&agent->line, agent->samples.wall_ns, agent->samples.count);
}

static void report_start(Agent *agent) {
  const Plan *plan = &agent->plan;
  const char *tunables = getenv("GLIBC_TUNABLES");
  Line *line = event(agent, "started", NULL);
  put(line, ", \"conditions\": {\"agent\": \"" AGENT_VERSION "\", \"runtime\": ");
  put_string(line, agent->runtime->name);
  put(line, ", \"threads\": %lld, \"cores\": ", (long long)plan->threads);
  pin(plan->cores, plan->core_count, plan->threads, line);
  put(line, ", \"allow_spinning\": %s", plan->allow_spinning ? "true" : "false");
  put(line, ", \"memory_arena\": %s", plan->memory_arena ? "true" : "false");
  put(line, ", \"huge_pages\": ");
  put_huge_pages(line);
  put(line, ", \"governor\": ");
  put_governors(line);
  put(line, ", \"extra\": {\"glibc_tunables\": ");
  put_string(line, tunables ? tunables : "");
  put(line, "%s}}, \"state\": ", agent->emulated ? ", \"emulated\": true" : "");
  watch_look(&agent->watch, &agent->before);
  put_state(line, &agent->before);
  emit(agent);
}

/* -- order ------------------------------------------------------------------------------------------------------------------ */

static uint64_t next_random(Agent *agent) { /* splitmix64 */
  uint64_t z = agent->random += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

static void shuffle(Agent *agent, Subject **subjects, size_t count) {
  for (size_t left = count; left > 1; left--) {
    size_t chosen = (size_t)(next_random(agent) % left);
    Subject *last = subjects[left - 1];
    subjects[left - 1] = subjects[chosen];
    subjects[chosen] = last;
  }
}

/* -- loading ---------------------------------------------------------------------------------------------------------------- */

/* Load a model and bind all cases that use it. */
static void load_model(Agent *agent, const char *model) {
  Failure failure = {0};
  OrtSession *session = NULL;
  int64_t before = 0;
  if (access(model, R_OK) != 0) {
    failed(&failure, "%s: no such file, or it may not be read", model);
  } else if (model_fits(model, &failure)) {
    before = now_ns();
    session = runtime_load(agent->runtime, &agent->plan, model, NULL, 0, &failure);
  }
  const int64_t load_ns = now_ns() - before;
  for (size_t i = 0; i < agent->plan.case_count; i++) {
    Subject *subject = &agent->subjects[i];
    const char *case_id = subject->item->case_id;
    if (strcmp(subject->item->model, model) != 0) continue;
    if (!session) {
      Failure same = failure;
      report_failure(agent, case_id, "load_failed", &same);
      continue;
    }
    doing(agent, case_id);
    subject->loaded_bytes = resident_bytes();
    subject->load_peak_bytes = peak_bytes();
    subject->bound = bound_make(agent->runtime, session, subject->item, agent->plan.seed, &failure);
    if (!subject->bound) {
      report_failure(agent, case_id, "run_failed", &failure);
      continue;
    }
    put(event(agent, "loaded", case_id), ", \"load_ns\": %lld, \"first_run_ns\": %lld", (long long)load_ns,
        (long long)subject->bound->first_run_ns);
    emit(agent);
  }
}

/* In shuffled order, so that no layout of memory favours a model; cases of one model share its session. */
static void load_all(Agent *agent) {
  Subject **firsts = need(agent->plan.case_count, sizeof *firsts);
  size_t count = 0;
  for (size_t i = 0; i < agent->plan.case_count; i++) {
    size_t known = 0;
    while (known < count && strcmp(firsts[known]->item->model, agent->plan.cases[i].model) != 0) known++;
    if (known == count) firsts[count++] = &agent->subjects[i];
  }
  shuffle(agent, firsts, count);
  for (size_t i = 0; i < count; i++) {
    doing(agent, firsts[i]->item->case_id);
    load_model(agent, firsts[i]->item->model);
  }
  free(firsts);
}

/* -- measuring -------------------------------------------------------------------------------------------------------------- */

static bool run_subject(void *context, Failure *failure) {
  const Agent *agent = context;
  return bound_run(agent->current->bound, failure);
}

/* Once a second while a case is measured: a line of its own. */
static void look(void *context) {
  Agent *agent = context;
  watch_look(&agent->watch, &agent->after);
  put(event(agent, "look", agent->current->item->case_id), ", \"round\": %lld, \"state\": ", (long long)agent->round);
  put_state(&agent->line, &agent->after);
  emit(agent);
}

static void waiting(void *context) {
  Agent *agent = context;
  doing(agent, agent->current->item->case_id);
}

static void give_up(Agent *agent, Subject *subject, Failure *failure) {
  bound_free(subject->bound);
  subject->bound = NULL;
  report_failure(agent, subject->item->case_id, "run_failed", failure);
}

static void measure_case(Agent *agent, Subject *subject) {
  Failure failure = {0};
  const Timed timed = {.run = run_subject, .look = look, .context = agent};
  agent->current = subject;
  doing(agent, subject->item->case_id);
  if (!timed_runs(&timed, &agent->plan, &agent->samples, &failure)) {
    give_up(agent, subject, &failure);
    return;
  }
  watch_look(&agent->watch, &agent->after);
  put(event(agent, "round", subject->item->case_id), ", \"round\": %lld", (long long)agent->round);
  put_samples(agent);
  put(&agent->line, ", \"cpu_ns\": ");
  if (agent->plan.threads == 1) {
    put_whole_numbers(&agent->line, agent->samples.cpu_ns, agent->samples.count);
  } else {
    put(&agent->line, "null");
  }
  put_states(agent, &agent->before, &agent->after);
  emit(agent);
  agent->before = agent->after;
}

static void measure_rounds(Agent *agent) {
  Subject **left = need(agent->plan.case_count, sizeof *left);
  for (agent->round = 0; agent->round < agent->plan.rounds; agent->round++) {
    size_t count = 0;
    for (size_t i = 0; i < agent->plan.case_count; i++) {
      Subject *subject = &agent->subjects[i];
      if (subject->bound && !plan_is_done(&agent->plan, subject->item->case_id, agent->round)) left[count++] = subject;
    }
    if (count == 0) continue;
    agent->watch.huge_page_share = huge_page_share();
    agent->current = left[0];
    watch_settle(&agent->watch, agent->plan.max_wait_s, agent->plan.max_temperature_c, waiting, agent, &agent->before);
    shuffle(agent, left, count);
    for (size_t i = 0; i < count; i++) measure_case(agent, left[i]);
  }
  free(left);
}

static bool run_often(Agent *agent, Subject *subject, int64_t runs) {
  Failure failure = {0};
  for (int64_t i = 0; i < runs; i++)
    if (!bound_run(subject->bound, &failure)) return give_up(agent, subject, &failure), false;
  return true;
}

static void measure_memory(Agent *agent, Subject *subject, int64_t base_bytes) {
  doing(agent, subject->item->case_id);
  if (!run_often(agent, subject, agent->plan.min_runs)) return;
  Line *line = event(agent, "memory", subject->item->case_id);
  put_bytes(line, "base_bytes", base_bytes);
  put_bytes(line, "loaded_bytes", subject->loaded_bytes);
  put_bytes(line, "peak_bytes", peak_bytes());
  put_bytes(line, "pss_bytes", rollup_bytes("Pss:"));
  put_bytes(line, "anonymous_bytes", rollup_bytes("Anonymous:"));
  put_bytes(line, "load_peak_bytes", subject->load_peak_bytes);
  emit(agent);
}

/* The first run, when the case was bound, counts. */
static void report_outputs(Agent *agent, Subject *subject) {
  Failure failure = {0};
  Line digests = {0};
  doing(agent, subject->item->case_id);
  if (!run_often(agent, subject, agent->plan.min_runs - 1)) return;
  for (size_t i = 0; i < subject->bound->output_count; i++) {
    const Output *output = &subject->bound->outputs[i];
    const void *data = NULL;
    size_t bytes = 0;
    char digest[65];
    if (!bound_output(subject->bound, output, &data, &bytes, &failure)) {
      give_up(agent, subject, &failure);
      return;
    }
    sha256_hex(data, bytes, digest);
    if (i) put(&digests, ", ");
    put_string(&digests, output->name);
    put(&digests, ": \"%s\"", digest);
  }
  put(event(agent, "outputs", subject->item->case_id), ", \"sha256\": {%s}", digests.length ? digests.text : "");
  emit(agent);
  free(digests.text);
}

static void measure_limits(Agent *agent) {
  doing(agent, "limits");
  for (int number = 0; number < LIMIT_COUNT; number++) {
    Failure failure = {0};
    Limit limit;
    watch_look(&agent->watch, &agent->before);
    if (!limit_measure(agent->runtime, &agent->plan, number, &limit, &agent->samples, &failure)) {
      report_failure(agent, "limits", "run_failed", &failure);
      return;
    }
    watch_look(&agent->watch, &agent->after);
    Line *line = event(agent, "limit", NULL);
    put(line, ", \"limit\": \"%s\", \"threads\": %lld", limit.name, (long long)agent->plan.threads);
    put(line, ", \"amount\": %lld", (long long)limit.amount);
    put_samples(agent);
    put(line, ", \"method\": ");
    put_string(line, limit.method);
    put_states(agent, &agent->before, &agent->after);
    emit(agent);
  }
}

void agent_run(Agent *agent) {
  const Plan *plan = &agent->plan;
  agent->random = plan->seed;
  agent->subjects = need(plan->case_count, sizeof *agent->subjects);
  for (size_t i = 0; i < plan->case_count; i++) agent->subjects[i].item = &plan->cases[i];
  watch_begin(&agent->watch);
  report_start(agent);
  if (plan->purpose == FOR_LIMITS) {
    measure_limits(agent);
    return;
  }
  const int64_t base_bytes = resident_bytes();
  load_all(agent);
  if (plan->purpose == FOR_LATENCY) measure_rounds(agent);
  for (size_t i = 0; i < plan->case_count; i++) {
    Subject *subject = &agent->subjects[i];
    if (!subject->bound) continue;
    if (plan->purpose == FOR_MEMORY) measure_memory(agent, subject, base_bytes);
    if (plan->purpose == FOR_OUTPUTS) report_outputs(agent, subject);
  }
}
