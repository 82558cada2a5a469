#include "bound.h"

#include <stdlib.h>
#include <string.h>

#include "timing.h"

static bool make_inputs(Bound *bound, uint64_t seed, Failure *failure) {
  const Runtime *runtime = bound->runtime;
  for (size_t i = 0; i < bound->item->feed_count; i++) {
    const Feed *feed = &bound->item->feeds[i];
    Tensor *tensor = &bound->inputs[i].tensor;
    if (!feed_content(feed, seed, tensor, failure)) return false;
    OrtStatus *status = runtime->api->CreateTensorWithDataAsOrtValue(runtime->cpu, tensor->data, tensor->bytes, feed->shape, feed->rank,
                                                                     tensor->type, &bound->inputs[i].value);
    if (!ort_ok(runtime, status, failure)) return false;
  }
  return true;
}

static bool name_outputs(Bound *bound, Failure *failure) {
  const Runtime *runtime = bound->runtime;
  size_t count = 0;
  if (!ort_ok(runtime, runtime->api->SessionGetOutputCount(bound->session, &count), failure)) return false;
  bound->outputs = need(count, sizeof *bound->outputs);
  for (; bound->output_count < count; bound->output_count++) {
    char *name = NULL;
    OrtStatus *status = runtime->api->SessionGetOutputName(bound->session, bound->output_count, runtime->allocator, &name);
    if (!ort_ok(runtime, status, failure)) return false;
    bound->outputs[bound->output_count].name = need_text(name);
    if (!ort_ok(runtime, runtime->api->AllocatorFree(runtime->allocator, name), failure)) return false;
  }
  return true;
}

/* Tell each state's output which input it replaces. */
static bool match_states(Bound *bound, Failure *failure) {
  for (size_t i = 0; i < bound->item->state_count; i++) {
    const StatePair *state = &bound->item->states[i];
    size_t input = 0, output = 0;
    while (input < bound->item->feed_count && strcmp(bound->item->feeds[input].name, state->input) != 0) input++;
    while (output < bound->output_count && strcmp(bound->outputs[output].name, state->output) != 0) output++;
    if (input == bound->item->feed_count) return failed(failure, "the state %.200s has no feed", state->input);
    if (output == bound->output_count) return failed(failure, "the model has no output %.200s", state->output);
    bound->outputs[output].state = &bound->inputs[input];
    bound->outputs[output].shared = state->shared;
  }
  return true;
}

/* The value that an input is read from on a turn: a swapped state is read where the run before left it. */
static const OrtValue *read_from(const Bound *bound, const Input *input, int turn) {
  for (size_t i = 0; turn == 1 && i < bound->output_count; i++)
    if (bound->outputs[i].swapped && bound->outputs[i].state == input) return bound->outputs[i].made;
  return input->value;
}

/* The value that an output is written to on a turn; NULL when there is none yet. */
static OrtValue *written_to(const Output *output, int turn) {
  return output->shared || (output->swapped && turn == 1) ? output->state->value : output->made;
}

/* The runtime makes the buffers of outputs that have none. */
static bool bind_turn(Bound *bound, int turn, Failure *failure) {
  const Runtime *runtime = bound->runtime;
  const OrtApi *api = runtime->api;
  if (!ort_ok(runtime, api->CreateIoBinding(bound->session, &bound->bindings[turn]), failure)) return false;
  OrtIoBinding *binding = bound->bindings[turn];
  for (size_t i = 0; i < bound->item->feed_count; i++) {
    const OrtValue *value = read_from(bound, &bound->inputs[i], turn);
    if (!ort_ok(runtime, api->BindInput(binding, bound->item->feeds[i].name, value), failure)) return false;
  }
  for (size_t i = 0; i < bound->output_count; i++) {
    const Output *output = &bound->outputs[i];
    OrtValue *value = written_to(output, turn);
    OrtStatus *status = value ? api->BindOutput(binding, output->name, value)
                              : api->BindOutputToDevice(binding, output->name, runtime->cpu);
    if (!ort_ok(runtime, status, failure)) return false;
  }
  return true;
}

/* Run once and keep the buffers that this made. */
static bool run_first(Bound *bound, Failure *failure) {
  const Runtime *runtime = bound->runtime;
  const OrtApi *api = runtime->api;
  OrtValue **values = NULL;
  size_t count = 0;
  if (!bind_turn(bound, 0, failure)) return false;
  int64_t before = now_ns();
  if (!ort_ok(runtime, api->RunWithBinding(bound->session, NULL, bound->bindings[0]), failure)) return false;
  bound->first_run_ns = now_ns() - before;
  if (!ort_ok(runtime, api->GetBoundOutputValues(bound->bindings[0], runtime->allocator, &values, &count), failure)) return false;
  for (size_t i = 0; i < count; i++) { /* in the order in which they were bound, which is the model's */
    if (i < bound->output_count && !bound->outputs[i].shared) {
      bound->outputs[i].made = values[i];
    } else {
      api->ReleaseValue(values[i]);
    }
  }
  api->ReleaseIoBinding(bound->bindings[0]);
  bound->bindings[0] = NULL;
  if (values && !ort_ok(runtime, api->AllocatorFree(runtime->allocator, values), failure)) return false;
  return count == bound->output_count || failed(failure, "the runtime gave %zu outputs, not %zu", count, bound->output_count);
}

/* Whether a value has the shape of a feed. */
static bool compare_shape(const Runtime *runtime, const OrtValue *value, const Feed *feed, bool *same, Failure *failure) {
  OrtTensorTypeAndShapeInfo *info = NULL;
  size_t rank = 0;
  if (!ort_ok(runtime, runtime->api->GetTensorTypeAndShape(value, &info), failure)) return false;
  bool read = ort_ok(runtime, runtime->api->GetDimensionsCount(info, &rank), failure);
  *same = false;
  if (read && rank == feed->rank) {
    int64_t *shape = need(rank, sizeof *shape);
    read = ort_ok(runtime, runtime->api->GetDimensions(info, shape, rank), failure);
    *same = read && memcmp(shape, feed->shape, rank * sizeof *shape) == 0;
    free(shape);
  }
  runtime->api->ReleaseTensorTypeAndShapeInfo(info);
  return read;
}

/* The first run has left the new states in `made`: the next one is turn 1, which reads them there. */
static bool bind_all(Bound *bound, Failure *failure) {
  for (size_t i = 0; i < bound->output_count; i++) {
    Output *output = &bound->outputs[i];
    if (!output->state || output->shared) continue;
    const Feed *feed = &bound->item->feeds[output->state - bound->inputs];
    if (!compare_shape(bound->runtime, output->made, feed, &output->swapped, failure)) return false;
    if (output->swapped) bound->turn = 1;
  }
  return bind_turn(bound, 0, failure) && (bound->turn == 0 || bind_turn(bound, 1, failure));
}

Bound *bound_make(const Runtime *runtime, OrtSession *session, const Case *item, uint64_t seed, Failure *failure) {
  Bound *bound = need(1, sizeof *bound);
  *bound = (Bound){.runtime = runtime, .session = session, .item = item, .inputs = need(item->feed_count, sizeof *bound->inputs)};
  if (make_inputs(bound, seed, failure) && name_outputs(bound, failure) && match_states(bound, failure) && run_first(bound, failure) &&
      bind_all(bound, failure))
    return bound;
  bound_free(bound);
  return NULL;
}

void bound_free(Bound *bound) {
  const OrtApi *api = bound->runtime->api;
  for (int turn = 0; turn < 2; turn++)
    if (bound->bindings[turn]) api->ReleaseIoBinding(bound->bindings[turn]);
  for (size_t i = 0; i < bound->output_count; i++) {
    if (bound->outputs[i].made) api->ReleaseValue(bound->outputs[i].made);
    free(bound->outputs[i].name);
  }
  for (size_t i = 0; i < bound->item->feed_count; i++) {
    if (bound->inputs[i].value) api->ReleaseValue(bound->inputs[i].value);
    free(bound->inputs[i].tensor.data);
  }
  free(bound->outputs);
  free(bound->inputs);
  free(bound);
}

bool bound_run(Bound *bound, Failure *failure) {
  OrtStatus *status = bound->runtime->api->RunWithBinding(bound->session, NULL, bound->bindings[bound->turn]);
  if (status) return ort_ok(bound->runtime, status, failure);
  if (bound->bindings[1]) bound->turn = !bound->turn;
  return true;
}

bool bound_output(const Bound *bound, const Output *output, const void **data, size_t *bytes, Failure *failure) {
  const Runtime *runtime = bound->runtime;
  OrtValue *value = written_to(output, bound->bindings[1] ? !bound->turn : 0); /* of the turn before the next */
  OrtTensorTypeAndShapeInfo *info = NULL;
  void *content = NULL;
  size_t elements = 0;
  int type = 0, is_tensor = 0;
  if (!ort_ok(runtime, runtime->api->IsTensor(value, &is_tensor), failure)) return false;
  if (!is_tensor) return failed(failure, "the output %.200s is no tensor", output->name);
  if (!ort_ok(runtime, runtime->api->GetTensorTypeAndShape(value, &info), failure)) return false;
  bool read = ort_ok(runtime, runtime->api->GetTensorElementType(info, &type), failure) &&
              ort_ok(runtime, runtime->api->GetTensorShapeElementCount(info, &elements), failure) &&
              ort_ok(runtime, runtime->api->GetTensorMutableData(value, &content), failure);
  runtime->api->ReleaseTensorTypeAndShapeInfo(info);
  if (read && !element_bytes(type)) return failed(failure, "the output %.200s has a type that is not compared", output->name);
  *data = content;
  *bytes = elements * element_bytes(type);
  return read;
}
