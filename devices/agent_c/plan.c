#include "plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "json.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Each reader leaves what is already there when the plan does not say (value is NULL). */

static bool read_text(const JsonValue *value, const char *where, const char **text, Failure *failure) {
  if (!value) return true;
  if (value->type != JSON_STRING) return failed(failure, "%s: expected a string", where);
  *text = value->text;
  return true;
}

static bool read_bool(const JsonValue *value, const char *where, bool *flag, Failure *failure) {
  if (!value) return true;
  if (value->type != JSON_TRUE && value->type != JSON_FALSE) return failed(failure, "%s: expected true or false", where);
  *flag = value->type == JSON_TRUE;
  return true;
}

static bool read_number(const JsonValue *value, const char *where, double *number, Failure *failure) {
  if (!value) return true;
  if (value->type != JSON_NUMBER) return failed(failure, "%s: expected a number", where);
  *number = value->number;
  return true;
}

/* Unsigned 64 bits; negative numbers wrap around, as Python's `seed & MASK` does. */
static bool read_bits(const JsonValue *value, const char *where, uint64_t *bits, Failure *failure) {
  if (!value) return true;
  if (value->type != JSON_NUMBER || !value->whole) return failed(failure, "%s: expected a whole number of 64 bits", where);
  *bits = value->negative ? 0 - value->magnitude : value->magnitude;
  return true;
}

static bool read_whole(const JsonValue *value, const char *where, int64_t least, int64_t *number, Failure *failure) {
  if (!value) return true;
  if (value->type != JSON_NUMBER || !value->whole || value->magnitude > INT64_MAX)
    return failed(failure, "%s: expected a whole number", where);
  *number = value->negative ? -(int64_t)value->magnitude : (int64_t)value->magnitude;
  return *number >= least || failed(failure, "%s must be at least %lld, not %lld", where, (long long)least, (long long)*number);
}

static bool read_choice(const JsonValue *value, const char *where, const char *const *names, size_t count, int *choice, Failure *failure) {
  const char *text = NULL;
  if (!value) return true;
  if (!read_text(value, where, &text, failure)) return false;
  for (size_t i = 0; i < count; i++)
    if (strcmp(text, names[i]) == 0) return *choice = (int)i, true;
  return failed(failure, "%s: unknown: %.100s", where, text);
}

static bool is_array(const JsonValue *value, const char *where, Failure *failure) {
  return value->type == JSON_ARRAY || failed(failure, "%s: expected an array", where);
}

static bool read_feed(const JsonValue *value, Feed *feed, Failure *failure) {
  static const char *const fills[] = {"zeros", "normal", "constant", "integers"};
  const JsonValue *name = NULL, *dtype = NULL, *shape = NULL, *fill = NULL, *constant = NULL, *scale = NULL, *high = NULL;
  const JsonField fields[] = {
      {"name", true, &name},   {"dtype", true, &dtype},      {"shape", true, &shape}, {"fill", false, &fill},
      {"scale", false, &scale}, {"value", false, &constant}, {"high", false, &high},
  };
  int choice = FILL_ZEROS;
  int64_t above = 0;
  feed->scale = 1.0;
  if (!json_take(value, "feeds", fields, COUNT(fields), failure) || !is_array(shape, "shape", failure)) return false;
  feed->shape = need(shape->count, sizeof *feed->shape);
  for (const JsonValue *size = shape->first; size; size = size->next)
    if (!read_whole(size, "shape", 0, &feed->shape[feed->rank++], failure)) return false;
  if (!read_text(name, "name", &feed->name, failure) || !read_text(dtype, "dtype", &feed->dtype, failure) ||
      !read_choice(fill, "fill", fills, COUNT(fills), &choice, failure) || !read_number(constant, "value", &feed->value, failure) ||
      !read_number(scale, "scale", &feed->scale, failure) || !read_whole(high, "high", 0, &above, failure))
    return false;
  feed->fill = (Fill)choice;
  feed->high = (uint64_t)above;
  return true;
}

static bool read_state(const JsonValue *value, StatePair *state, Failure *failure) {
  const JsonValue *input = NULL, *output = NULL, *shared = NULL;
  const JsonField fields[] = {{"input", true, &input}, {"output", true, &output}, {"shared", true, &shared}};
  return json_take(value, "states", fields, COUNT(fields), failure) && read_text(input, "input", &state->input, failure) &&
         read_text(output, "output", &state->output, failure) && read_bool(shared, "shared", &state->shared, failure);
}

static bool read_case(const JsonValue *value, Case *item, Failure *failure) {
  const JsonValue *case_id = NULL, *model = NULL, *feeds = NULL, *states = NULL;
  const JsonField fields[] = {{"case_id", true, &case_id}, {"model", true, &model}, {"feeds", true, &feeds}, {"states", true, &states}};
  if (!json_take(value, "cases", fields, COUNT(fields), failure) || !read_text(case_id, "case_id", &item->case_id, failure) ||
      !read_text(model, "model", &item->model, failure) || !is_array(feeds, "feeds", failure) || !is_array(states, "states", failure))
    return false;
  item->feeds = need(feeds->count, sizeof *item->feeds);
  item->states = need(states->count, sizeof *item->states);
  for (const JsonValue *feed = feeds->first; feed; feed = feed->next)
    if (!read_feed(feed, &item->feeds[item->feed_count++], failure)) return false;
  for (const JsonValue *state = states->first; state; state = state->next)
    if (!read_state(state, &item->states[item->state_count++], failure)) return false;
  return true;
}

static bool read_cores(const JsonValue *value, Plan *plan, Failure *failure) {
  if (!value || value->type == JSON_NULL) return true;
  if (!is_array(value, "cores", failure)) return false;
  plan->cores = need(value->count, sizeof *plan->cores);
  for (const JsonValue *core = value->first; core; core = core->next) {
    int64_t number = 0;
    if (!read_whole(core, "cores", 0, &number, failure)) return false;
    plan->cores[plan->core_count++] = number > INT32_MAX ? INT32_MAX : (int)number;
  }
  return true;
}

static bool read_done(const JsonValue *value, Plan *plan, Failure *failure) {
  if (!value) return true;
  if (!is_array(value, "done", failure)) return false;
  plan->done = need(value->count, sizeof *plan->done);
  for (const JsonValue *pair = value->first; pair; pair = pair->next) {
    Done *done = &plan->done[plan->done_count++];
    if (pair->type != JSON_ARRAY || pair->count != 2) return failed(failure, "done: expected pairs of a case and a round");
    if (!read_text(pair->first, "done", &done->case_id, failure) || !read_whole(pair->first->next, "done", 0, &done->round, failure))
      return false;
  }
  return true;
}

/* What no field tells alone. */
static bool is_possible(const Plan *plan, Failure *failure) {
  for (size_t i = 0; i < plan->case_count; i++)
    for (size_t j = 0; j < i; j++)
      if (strcmp(plan->cases[i].case_id, plan->cases[j].case_id) == 0)
        return failed(failure, "two cases share the id %.200s", plan->cases[i].case_id);
  if (plan->purpose == FOR_LIMITS && plan->case_count != 0) return failed(failure, "a plan for limits takes no cases");
  if (plan->purpose == FOR_MEMORY && plan->case_count != 1) return failed(failure, "a plan for memory takes one case");
  if (plan->purpose != FOR_LIMITS && plan->case_count == 0) return failed(failure, "a plan without cases");
  return true;
}

bool plan_read(char *text, size_t length, Plan *plan, Failure *failure) {
  static const char *const purposes[] = {"latency", "memory", "outputs", "limits"};
  const JsonValue *cases = NULL, *purpose = NULL, *threads = NULL, *cores = NULL, *rounds = NULL, *done = NULL, *warmup_runs = NULL,
                  *min_runs = NULL, *min_time_ns = NULL, *allow_spinning = NULL, *memory_arena = NULL, *memory_limit = NULL,
                  *max_wait_s = NULL, *max_temperature_c = NULL, *timeout_s = NULL, *seed = NULL;
  const JsonField fields[] = {
      {"cases", true, &cases},
      {"purpose", false, &purpose},
      {"threads", false, &threads},
      {"cores", false, &cores},
      {"rounds", false, &rounds},
      {"done", false, &done},
      {"warmup_runs", false, &warmup_runs},
      {"min_runs", false, &min_runs},
      {"min_time_ns", false, &min_time_ns},
      {"allow_spinning", false, &allow_spinning},
      {"memory_arena", false, &memory_arena},
      {"memory_limit_bytes", false, &memory_limit},
      {"max_wait_s", false, &max_wait_s},
      {"max_temperature_c", false, &max_temperature_c},
      {"timeout_s", false, &timeout_s}, /* the host's business */
      {"seed", false, &seed},
  };
  *plan = (Plan){.threads = 1, .rounds = 3, .warmup_runs = 2, .min_runs = 5, .min_time_ns = 100000000};
  plan->max_wait_s = 2.0;
  plan->max_temperature_c = 90.0;
  const JsonValue *object = json_parse(text, length, failure);
  int choice = FOR_LATENCY;
  if (!object || !json_take(object, "the plan", fields, COUNT(fields), failure) || !is_array(cases, "cases", failure)) return false;
  plan->cases = need(cases->count, sizeof *plan->cases);
  for (const JsonValue *item = cases->first; item; item = item->next)
    if (!read_case(item, &plan->cases[plan->case_count++], failure)) return false;
  plan->memory_limited = memory_limit && memory_limit->type != JSON_NULL;
  if (!read_choice(purpose, "purpose", purposes, COUNT(purposes), &choice, failure) ||
      !read_whole(threads, "threads", 1, &plan->threads, failure) || !read_cores(cores, plan, failure) ||
      !read_whole(rounds, "rounds", 1, &plan->rounds, failure) || !read_done(done, plan, failure) ||
      !read_whole(warmup_runs, "warmup_runs", 0, &plan->warmup_runs, failure) ||
      !read_whole(min_runs, "min_runs", 1, &plan->min_runs, failure) ||
      !read_whole(min_time_ns, "min_time_ns", 0, &plan->min_time_ns, failure) ||
      !read_bool(allow_spinning, "allow_spinning", &plan->allow_spinning, failure) ||
      !read_bool(memory_arena, "memory_arena", &plan->memory_arena, failure) ||
      !read_bits(plan->memory_limited ? memory_limit : NULL, "memory_limit_bytes", &plan->memory_limit_bytes, failure) ||
      !read_number(max_wait_s, "max_wait_s", &plan->max_wait_s, failure) ||
      !read_number(max_temperature_c, "max_temperature_c", &plan->max_temperature_c, failure) ||
      !read_bits(seed, "seed", &plan->seed, failure))
    return false;
  plan->purpose = (Purpose)choice;
  return is_possible(plan, failure);
}

bool plan_is_done(const Plan *plan, const char *case_id, int64_t round) {
  for (size_t i = 0; i < plan->done_count; i++)
    if (plan->done[i].round == round && strcmp(plan->done[i].case_id, case_id) == 0) return true;
  return false;
}
