#include "json.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEEPEST = 32 };

typedef struct {
  char *begin, *at, *end;
  Failure *failure;
} Reader;

static bool read_value(Reader *reader, JsonValue *value, int depth);

static bool wrong(Reader *reader, const char *problem) {
  return failed(reader->failure, "%s at byte %td", problem, reader->at - reader->begin);
}

static void skip_blanks(Reader *reader) {
  while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) && *reader->at) reader->at++;
}

static bool word(Reader *reader, const char *expected) {
  size_t length = strlen(expected);
  if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, expected, length) != 0) return false;
  reader->at += length;
  return true;
}

/* Bytes of the UTF-8 sequence at `text`, 0 when it is none: no overlong forms, no surrogates, nothing above U+10FFFF. */
static size_t utf8_length(const unsigned char *text, size_t left) {
  unsigned char lead = text[0];
  size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (length == 0 || length > left) return 0;
  for (size_t i = 1; i < length; i++)
    if ((text[i] & 0xC0) != 0x80) return 0;
  if (lead == 0xE0 && text[1] < 0xA0) return 0;
  if (lead == 0xED && text[1] >= 0xA0) return 0;
  if (lead == 0xF0 && text[1] < 0x90) return 0;
  if (lead == 0xF4 && text[1] >= 0x90) return 0;
  return length;
}

static char *put_utf8(char *to, uint32_t point) {
  if (point < 0x80) {
    *to++ = (char)point;
  } else if (point < 0x800) {
    *to++ = (char)(0xC0 | point >> 6);
    *to++ = (char)(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    *to++ = (char)(0xE0 | point >> 12);
    *to++ = (char)(0x80 | (point >> 6 & 0x3F));
    *to++ = (char)(0x80 | (point & 0x3F));
  } else {
    *to++ = (char)(0xF0 | point >> 18);
    *to++ = (char)(0x80 | (point >> 12 & 0x3F));
    *to++ = (char)(0x80 | (point >> 6 & 0x3F));
    *to++ = (char)(0x80 | (point & 0x3F));
  }
  return to;
}

/* Four hexadecimal digits behind "\u". */
static bool read_unit(Reader *reader, uint32_t *unit) {
  *unit = 0;
  for (int i = 0; i < 4; i++, reader->at++) {
    char digit = reader->at < reader->end ? *reader->at : '\0';
    uint32_t value = digit >= '0' && digit <= '9'   ? (uint32_t)(digit - '0')
                     : digit >= 'a' && digit <= 'f' ? (uint32_t)(digit - 'a' + 10)
                     : digit >= 'A' && digit <= 'F' ? (uint32_t)(digit - 'A' + 10)
                                                    : 16;
    if (value == 16) return wrong(reader, "expected four hexadecimal digits");
    *unit = *unit << 4 | value;
  }
  return true;
}

/* The code point of an escape; what is decoded is never longer than what was written. */
static bool read_escape(Reader *reader, char **to) {
  static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
  char letter = reader->at < reader->end ? *reader->at++ : '\0';
  const char *found = letter ? strchr(letters, letter) : NULL;
  if (found) {
    *(*to)++ = meanings[found - letters];
    return true;
  }
  if (letter != 'u') return wrong(reader, "unknown escape");
  uint32_t point, low;
  if (!read_unit(reader, &point)) return false;
  if (point >= 0xD800 && point < 0xDC00) {
    if (!word(reader, "\\u") || !read_unit(reader, &low) || low < 0xDC00 || low > 0xDFFF) return wrong(reader, "half of a surrogate pair");
    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
  } else if (point >= 0xDC80 && point <= 0xDCFF) {
    *(*to)++ = (char)(point - 0xDC00);
    return true;
  } else if (point >= 0xDC00 && point <= 0xDFFF) {
    return wrong(reader, "half of a surrogate pair");
  }
  if (point == 0) return wrong(reader, "a NUL in a string");
  *to = put_utf8(*to, point);
  return true;
}

static bool read_string(Reader *reader, const char **text) {
  if (reader->at == reader->end || *reader->at != '"') return wrong(reader, "expected a string");
  char *to = ++reader->at;
  *text = to;
  while (reader->at < reader->end) {
    unsigned char byte = (unsigned char)*reader->at;
    if (byte == '"') {
      reader->at++;
      *to = '\0'; /* at the latest where the closing quote was */
      return true;
    }
    if (byte == '\\') {
      reader->at++;
      if (!read_escape(reader, &to)) return false;
      continue;
    }
    if (byte < 0x20) return wrong(reader, "a control character in a string");
    size_t length = utf8_length((unsigned char *)reader->at, (size_t)(reader->end - reader->at));
    if (length == 0) return wrong(reader, "no UTF-8");
    memmove(to, reader->at, length);
    to += length;
    reader->at += length;
  }
  return wrong(reader, "a string without end");
}

static bool digits(Reader *reader) {
  char *begin = reader->at;
  while (reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9') reader->at++;
  return reader->at > begin;
}

static bool read_number(Reader *reader, JsonValue *value) {
  char *begin = reader->at;
  value->type = JSON_NUMBER;
  if (word(reader, "NaN")) return value->number = NAN, true;
  if (word(reader, "Infinity")) return value->number = INFINITY, true;
  if (word(reader, "-Infinity")) return value->number = -INFINITY, true;
  value->negative = word(reader, "-");
  char *integer = reader->at;
  if (!word(reader, "0") && !digits(reader)) return wrong(reader, "expected a value");
  value->whole = true;
  for (char *at = integer; at < reader->at; at++) {
    uint64_t digit = (uint64_t)(*at - '0');
    if (value->magnitude > (UINT64_MAX - digit) / 10) value->whole = false;
    value->magnitude = value->magnitude * 10 + digit;
  }
  if (word(reader, ".")) {
    value->whole = false;
    if (!digits(reader)) return wrong(reader, "expected a digit");
  }
  if (word(reader, "e") || word(reader, "E")) {
    value->whole = false;
    if (!word(reader, "+")) word(reader, "-");
    if (!digits(reader)) return wrong(reader, "expected a digit");
  }
  value->number = strtod(begin, NULL);
  return true;
}

static bool read_items(Reader *reader, JsonValue *container, int depth, char close) {
  JsonValue **next = &container->first;
  reader->at++;
  skip_blanks(reader);
  if (reader->at < reader->end && *reader->at == close) return reader->at++, true;
  for (;;) {
    JsonValue *item = *next = need(1, sizeof *item);
    next = &item->next;
    container->count++;
    skip_blanks(reader);
    if (container->type == JSON_OBJECT) {
      if (!read_string(reader, &item->key)) return false;
      skip_blanks(reader);
      if (!word(reader, ":")) return wrong(reader, "expected ':'");
    }
    if (!read_value(reader, item, depth + 1)) return false;
    skip_blanks(reader);
    if (reader->at < reader->end && *reader->at == close) return reader->at++, true;
    if (!word(reader, ",")) return wrong(reader, close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
  }
}

static bool read_value(Reader *reader, JsonValue *value, int depth) {
  if (depth > DEEPEST) return wrong(reader, "nested too deeply");
  skip_blanks(reader);
  switch (reader->at < reader->end ? *reader->at : '\0') {
    case '{': return value->type = JSON_OBJECT, read_items(reader, value, depth, '}');
    case '[': return value->type = JSON_ARRAY, read_items(reader, value, depth, ']');
    case '"': return value->type = JSON_STRING, read_string(reader, &value->text);
    case 't': return value->type = JSON_TRUE, word(reader, "true") || wrong(reader, "expected a value");
    case 'f': return value->type = JSON_FALSE, word(reader, "false") || wrong(reader, "expected a value");
    case 'n': return value->type = JSON_NULL, word(reader, "null") || wrong(reader, "expected a value");
    default: return read_number(reader, value);
  }
}

const JsonValue *json_parse(char *text, size_t length, Failure *failure) {
  Reader reader = {.begin = text, .at = text, .end = text + length, .failure = failure};
  JsonValue *value = need(1, sizeof *value);
  if (!read_value(&reader, value, 0)) return NULL;
  skip_blanks(&reader);
  if (reader.at != reader.end) return wrong(&reader, "something behind the value"), NULL;
  return value;
}

bool json_take(const JsonValue *object, const char *where, const JsonField *fields, size_t count, Failure *failure) {
  if (object->type != JSON_OBJECT) return failed(failure, "%s: expected an object", where);
  for (const JsonValue *member = object->first; member; member = member->next) {
    size_t i = 0;
    while (i < count && strcmp(fields[i].name, member->key) != 0) i++;
    if (i == count) return failed(failure, "%s: unknown key %.100s", where, member->key);
    if (*fields[i].value) return failed(failure, "%s: two values for %s", where, fields[i].name);
    *fields[i].value = member;
  }
  for (size_t i = 0; i < count; i++)
    if (fields[i].required && !*fields[i].value) return failed(failure, "%s: %s is missing", where, fields[i].name);
  return true;
}

/* -- writing --------------------------------------------------------------------------------------------------------- */

static void make_room(Line *line, size_t bytes) {
  if (line->room - line->length > bytes) return;
  line->room = 2 * line->room + bytes + 256;
  line->text = need_resized(line->text, line->room);
}

void put(Line *line, const char *format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  int bytes = vsnprintf(NULL, 0, format, arguments);
  make_room(line, (size_t)bytes);
  vsnprintf(line->text + line->length, line->room - line->length, format, again);
  line->length += (size_t)bytes;
  va_end(again);
  va_end(arguments);
}

void put_string(Line *line, const char *text) {
  put(line, "\"");
  for (size_t left = strlen(text); left > 0;) {
    unsigned char byte = (unsigned char)*text;
    size_t length = utf8_length((const unsigned char *)text, left);
    if (length == 0) {
      put(line, "\\u%04x", 0xDC00u + byte);
      length = 1;
    } else if (byte == '"' || byte == '\\') {
      put(line, "\\%c", byte);
    } else if (byte < 0x20 || byte == 0x7F) {
      put(line, "\\u%04x", byte);
    } else {
      put(line, "%.*s", (int)length, text);
    }
    text += length;
    left -= length;
  }
  put(line, "\"");
}

void put_string_or_null(Line *line, const char *text) {
  if (text) {
    put_string(line, text);
  } else {
    put(line, "null");
  }
}

void put_number(Line *line, double value) {
  if (isfinite(value)) {
    put(line, "%.17g", value);
  } else {
    put(line, "null");
  }
}

void put_whole_numbers(Line *line, const int64_t *values, size_t count) {
  put(line, "[");
  for (size_t i = 0; i < count; i++) put(line, i ? ", %lld" : "%lld", (long long)values[i]);
  put(line, "]");
}

void send_line(Line *line, int file) {
  put(line, "\n");
  for (size_t sent = 0; sent < line->length;) {
    ssize_t bytes = write(file, line->text + sent, line->length - sent);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) _exit(3); /* the host is gone */
    sent += (size_t)bytes;
  }
  line->length = 0;
}
