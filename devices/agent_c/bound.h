/* A case of a model, bound to buffers that stay: one run reads and writes the same memory as the next. */
#ifndef ARCHSEARCH_BOUND_H
#define ARCHSEARCH_BOUND_H

#include "feeds.h"
#include "runtime.h"

typedef struct {
  Tensor tensor; /* what `value` points to */
  OrtValue *value;
} Input;

typedef struct {
  char *name;
  OrtValue *made; /* the buffer that the first run made; NULL for a state that is written in place */
  Input *state;   /* the input whose state this replaces, or NULL */
  bool shared;    /* in place: the input's buffer is the output's, too */
  bool swapped;   /* two buffers, whose roles change with every run */
} Output;

typedef struct {
  const Runtime *runtime;
  OrtSession *session;
  const Case *item;
  Input *inputs; /* of each feed */
  Output *outputs;
  size_t output_count;
  OrtIoBinding *bindings[2]; /* [0]: states from the inputs to `made`; [1], where any is swapped: from `made` to the inputs */
  int turn;                  /* which of them is next */
  int64_t first_run_ns;
} Bound;

/* Make the inputs, run once (that run tells the outputs' shapes and pays for lazy initialisation), and bind. NULL is a failure. */
Bound *bound_make(const Runtime *runtime, OrtSession *session, const Case *item, uint64_t seed, Failure *failure);
void bound_free(Bound *bound);

/* One run; the states advance. */
bool bound_run(Bound *bound, Failure *failure);

/* The bytes of an output of the latest run. */
bool bound_output(const Bound *bound, const Output *output, const void **data, size_t *bytes, Failure *failure);

#endif
