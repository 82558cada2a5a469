/* A strict JSON reader (RFC 8259), and the one-line writer. Like Python's json it also knows NaN, Infinity and -Infinity.

   Python writes a file name that is no UTF-8 as lone surrogates (U+DC80 to U+DCFF, one a byte); they become those bytes again. */
#ifndef ARCHSEARCH_JSON_H
#define ARCHSEARCH_JSON_H

#include <stdint.h>

#include "failure.h"

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct JsonValue {
  JsonType type;
  const char *key;          /* its name, when it is a member of an object */
  const char *text;         /* of a string */
  double number;            /* of a number */
  bool whole;               /* the number has neither fraction nor exponent, and its digits fit in 64 bits: */
  bool negative;
  uint64_t magnitude;
  struct JsonValue *first;  /* of an array or object: its items, count of them */
  struct JsonValue *next;
  size_t count;
} JsonValue;

/* The value that `text` (with a NUL behind it) holds, or NULL and a failure that names the byte. Strings are decoded in place, so
   `text` must live as long as the value; nothing of it is ever freed, for a plan lives as long as its agent. */
const JsonValue *json_parse(char *text, size_t length, Failure *failure);

/* A member that an object may have, and where its value goes; NULL stays when it is absent. */
typedef struct {
  const char *name;
  bool required;
  const JsonValue **value;
} JsonField;

/* Take an object apart. Unknown, repeated and missing members are failures that name `where`. */
bool json_take(const JsonValue *object, const char *where, const JsonField *fields, size_t count, Failure *failure);

/* A line being written. It goes out whole, with its line end, in as few writes as the system makes of it. */
typedef struct {
  char *text;
  size_t length, room;
} Line;

void put(Line *line, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A JSON string, quoted and escaped; bytes that are no UTF-8 as lone surrogates, as Python would. */
void put_string(Line *line, const char *text);
void put_string_or_null(Line *line, const char *text);
/* Numbers that JSON has no word for become null. */
void put_number(Line *line, double value);
void put_whole_numbers(Line *line, const int64_t *values, size_t count);
/* Write the line to a file and empty it; leaves when nobody reads any more. */
void send_line(Line *line, int file);

#endif
