/* ONNX Runtime, opened while the agent runs: sessions, and a check of every answer. */
#ifndef ARCHSEARCH_RUNTIME_H
#define ARCHSEARCH_RUNTIME_H

#include "failure.h"
#include "ort.h"
#include "plan.h"

typedef struct {
  const OrtApi *api;
  OrtEnv *env;
  OrtMemoryInfo *cpu;
  OrtAllocator *allocator;
  char name[64]; /* "onnxruntime 1.32.0 CPUExecutionProvider" */
} Runtime;

/* Open the library at `path`. */
bool runtime_open(Runtime *runtime, const char *path, Failure *failure);

/* Whether a call went well; takes over its status. */
bool ort_ok(const Runtime *runtime, OrtStatus *status, Failure *failure);

/* A session of a model, from its file or, where `model` is given, from memory; configured as every agent does. NULL is a failure. */
OrtSession *runtime_load(const Runtime *runtime, const Plan *plan, const char *path, const void *model, size_t bytes, Failure *failure);

/* Number of an element type by numpy's name for it, and its size; 0 for one that the runtime does not take. */
int element_type(const char *dtype);
size_t element_bytes(int type);

#endif
