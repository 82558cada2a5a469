#include "limits.h"

#include <stdio.h>

#include "bound.h"
#include "machine.h"
#include "memory.h"

/* As in devices/agent/limits.py. */
enum { COLUMNS = 4096, CACHES = 4, MATMUL_SIZE = 1024 };
static const int64_t LEAST_BYTES = 256ll << 20;

/* An ONNX model, c = MatMul(a, b), float32 matrices of any size (opset 13), as its protobuf has it:
   onnx.helper.make_model(onnx.helper.make_graph([MatMul(a, b) -> c], "m", ...)) without the producer's name. */
static const unsigned char MATMUL[] = {
    0x08, 0x08, 0x3a, 0x49, 0x0a, 0x11, 0x0a, 0x01, 'a',  0x0a, 0x01, 'b',  0x12, 0x01, 'c',  0x22, 0x06, 'M',  'a',  't',  'M',
    'u',  'l',  0x12, 0x01, 'm',  0x5a, 0x0f, 0x0a, 0x01, 'a',  0x12, 0x0a, 0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, 0x0a, 0x00, 0x0a,
    0x00, 0x5a, 0x0f, 0x0a, 0x01, 'b',  0x12, 0x0a, 0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, 0x0a, 0x00, 0x0a, 0x00, 0x62, 0x0f, 0x0a,
    0x01, 'c',  0x12, 0x0a, 0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, 0x0a, 0x00, 0x0a, 0x00, 0x42, 0x04, 0x0a, 0x00, 0x10, 0x0d};

/* Bytes of the matrix to read: out of every cache's reach, and at most an eighth of the memory that is free. */
static int64_t bytes_to_read(void) {
  int64_t wanted = CACHES * last_level_cache(), available = available_bytes();
  if (wanted < LEAST_BYTES) wanted = LEAST_BYTES;
  return available >= 0 && wanted > available / 8 ? available / 8 : wanted;
}

static bool run(void *context, Failure *failure) { return bound_run(context, failure); }

/* Time the product of matrices of `rows` x `inner` and `inner` x `columns`. */
static bool time_product(const Runtime *runtime, const Plan *plan, int64_t rows, int64_t inner, int64_t columns, Samples *samples,
                         Failure *failure) {
  int64_t a_shape[] = {rows, inner}, b_shape[] = {inner, columns};
  Feed feeds[] = {{.name = "a", .dtype = "float32", .shape = a_shape, .rank = 2, .fill = FILL_CONSTANT, .value = 0.5},
                  {.name = "b", .dtype = "float32", .shape = b_shape, .rank = 2, .fill = FILL_CONSTANT, .value = 0.5}};
  Case item = {.case_id = "limits", .feeds = feeds, .feed_count = 2};
  OrtSession *session = runtime_load(runtime, plan, NULL, MATMUL, sizeof MATMUL, failure);
  Bound *bound = session ? bound_make(runtime, session, &item, plan->seed, failure) : NULL;
  bool timed = bound && timed_runs(&(Timed){.run = run, .context = bound}, plan, samples, failure);
  if (bound) bound_free(bound);
  if (session) runtime->api->ReleaseSession(session);
  return timed;
}

bool limit_measure(const Runtime *runtime, const Plan *plan, int number, Limit *limit, Samples *samples, Failure *failure) {
  if (number == 0) {
    int64_t rows = bytes_to_read() / (4 * COLUMNS);
    if (rows < 1) rows = 1;
    *limit = (Limit){.name = "read_bandwidth", .amount = rows * 4 * COLUMNS};
    snprintf(limit->method, sizeof limit->method, "vector-matrix product over %lld MiB of float32, %s", (long long)(limit->amount >> 20),
             runtime->name);
    return time_product(runtime, plan, 1, rows, COLUMNS, samples, failure);
  }
  *limit = (Limit){.name = "fp32_matmul", .amount = 2ll * MATMUL_SIZE * MATMUL_SIZE * MATMUL_SIZE};
  snprintf(limit->method, sizeof limit->method, "matrix product of %d x %d float32, %s", MATMUL_SIZE, MATMUL_SIZE, runtime->name);
  return time_product(runtime, plan, MATMUL_SIZE, MATMUL_SIZE, MATMUL_SIZE, samples, failure);
}
