/* What went wrong, in one line for the host; and memory for small things, without which nothing can go on. */
#ifndef ARCHSEARCH_FAILURE_H
#define ARCHSEARCH_FAILURE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
  char text[1024];
} Failure;

/* Fill in the failure; always false, so that `return failed(...)` reads well. */
bool failed(Failure *failure, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Whether a failure says that memory ran out: ours, the C++ library's, or the runtime's. */
bool is_out_of_memory(const Failure *failure);

/* Blanks for line ends and tabs, none twice, at most 500 bytes. */
void flatten(Failure *failure);

/* Say why on stderr and leave with status 1: the host takes the last lines of stderr for the reason. */
_Noreturn void leave(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Zeroed memory, or a copy of a text; a small thing that does not fit ends the agent, as `bad_alloc`, which the host understands. */
void *need(size_t count, size_t size);
char *need_text(const char *text);

/* More room for what is there; NULL is nothing. */
void *need_resized(void *old, size_t bytes);

#endif
