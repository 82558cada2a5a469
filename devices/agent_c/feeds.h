/* Input tensors from their descriptions, bit by bit the same in every agent; docs/measuring.md gives the rule. */
#ifndef ARCHSEARCH_FEEDS_H
#define ARCHSEARCH_FEEDS_H

#include "plan.h"

typedef struct {
  void *data;
  size_t elements, bytes;
  int type;
} Tensor;

/* The tensor that `feed` describes; whoever asked frees its data. */
bool feed_content(const Feed *feed, uint64_t seed, Tensor *tensor, Failure *failure);

#endif
