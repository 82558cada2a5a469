#define _GNU_SOURCE
#include "failure.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LONGEST_DETAIL = 500 };

bool failed(Failure *failure, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(failure->text, sizeof failure->text, format, arguments);
  va_end(arguments);
  return false;
}

bool is_out_of_memory(const Failure *failure) {
  static const char *const words[] = {"bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory"};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (strcasestr(failure->text, words[i])) return true;
  return false;
}

void flatten(Failure *failure) {
  char *to = failure->text;
  for (const char *from = failure->text; *from && to - failure->text < LONGEST_DETAIL; from++) {
    char letter = (unsigned char)*from <= ' ' ? ' ' : *from;
    if (letter == ' ' && (to == failure->text || to[-1] == ' ')) continue;
    *to++ = letter;
  }
  while (to > failure->text && to[-1] == ' ') to--;
  *to = '\0';
}

void leave(const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(text, sizeof text - 1, format, arguments);
  va_end(arguments);
  size_t end = length < 0 ? 0 : (size_t)length < sizeof text - 1 ? (size_t)length : sizeof text - 2;
  text[end++] = '\n';
  if (write(2, text, end) < 0) {
    /* Nobody listens; the exit status is left to tell. */
  }
  _exit(1);
}

void *need(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size ? size : 1);
  if (!memory) leave("bad_alloc: no memory for %zu x %zu bytes", count, size);
  return memory;
}

void *need_resized(void *old, size_t bytes) {
  void *memory = realloc(old, bytes);
  if (!memory) leave("bad_alloc: no memory for %zu bytes", bytes);
  return memory;
}

char *need_text(const char *text) {
  size_t bytes = strlen(text) + 1;
  return memcpy(need(bytes, 1), text, bytes);
}
