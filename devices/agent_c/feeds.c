#include "feeds.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

static const uint64_t GOLDEN = 0x9E3779B97F4A7C15u;
static const double LANES_MEAN = 2 * 65535;

/* Bits of an IEEE half, rounded to nearest, ties to even. */
static uint16_t half_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint16_t sign = (uint16_t)(bits >> 48 & 0x8000);
  int exponent = (int)(bits >> 52 & 0x7FF) - 1023;
  uint64_t mantissa = bits & 0xFFFFFFFFFFFFFu;
  if (exponent == 1024) return (uint16_t)(sign | 0x7C00 | (mantissa ? 0x200 : 0));
  if (exponent > 15) return (uint16_t)(sign | 0x7C00);
  if (exponent < -25) return sign;
  uint64_t kept, rest, middle;
  if (exponent >= -14) {
    kept = (uint64_t)(exponent + 15) << 10 | mantissa >> 42;
    rest = mantissa & ((1ull << 42) - 1);
    middle = 1ull << 41;
  } else { /* subnormal */
    int shift = 42 + (-14 - exponent);
    uint64_t all = mantissa | 1ull << 52;
    kept = all >> shift;
    rest = all & ((1ull << shift) - 1);
    middle = 1ull << (shift - 1);
  }
  kept += rest > middle || (rest == middle && (kept & 1)); /* may carry into the exponent, as it should */
  return (uint16_t)(sign | kept);
}

static void store_real(const Tensor *tensor, size_t i, double value) {
  switch (tensor->type) {
    case ORT_FLOAT: ((float *)tensor->data)[i] = (float)value; break;
    case ORT_DOUBLE: ((double *)tensor->data)[i] = value; break;
    case ORT_FLOAT16: ((uint16_t *)tensor->data)[i] = half_bits(value); break;
    case ORT_INT64: ((int64_t *)tensor->data)[i] = (int64_t)value; break;
    case ORT_INT32: ((int32_t *)tensor->data)[i] = (int32_t)value; break;
    case ORT_INT16: ((int16_t *)tensor->data)[i] = (int16_t)(int32_t)value; break;
    case ORT_INT8: ((int8_t *)tensor->data)[i] = (int8_t)(int32_t)value; break;
    case ORT_UINT64: ((uint64_t *)tensor->data)[i] = value < 0 ? (uint64_t)(int64_t)value : (uint64_t)value; break;
    case ORT_UINT32: ((uint32_t *)tensor->data)[i] = (uint32_t)(int64_t)value; break;
    case ORT_UINT16: ((uint16_t *)tensor->data)[i] = (uint16_t)(int32_t)value; break;
    case ORT_UINT8: ((uint8_t *)tensor->data)[i] = (uint8_t)(int32_t)value; break;
    case ORT_BOOL: ((uint8_t *)tensor->data)[i] = value != 0; break;
  }
}

static void store_whole(const Tensor *tensor, size_t i, uint64_t value) {
  switch (tensor->type) {
    case ORT_FLOAT: ((float *)tensor->data)[i] = (float)value; break;
    case ORT_FLOAT16: ((uint16_t *)tensor->data)[i] = half_bits((float)value); break; /* through float, as numpy does */
    case ORT_DOUBLE: ((double *)tensor->data)[i] = (double)value; break;
    case ORT_BOOL: ((uint8_t *)tensor->data)[i] = value != 0; break;
    default:
      switch (element_bytes(tensor->type)) {
        case 8: ((uint64_t *)tensor->data)[i] = value; break;
        case 4: ((uint32_t *)tensor->data)[i] = (uint32_t)value; break;
        case 2: ((uint16_t *)tensor->data)[i] = (uint16_t)value; break;
        default: ((uint8_t *)tensor->data)[i] = (uint8_t)value; break;
      }
  }
}

/* FNV-1a of the name, then the seed. */
static uint64_t key_of(const Feed *feed, uint64_t seed) {
  uint64_t key = 0xCBF29CE484222325u;
  for (const unsigned char *byte = (const unsigned char *)feed->name; *byte; byte++) key = (key ^ *byte) * 0x100000001B3u;
  return key ^ seed;
}

/* 64 random bits for an element: splitmix64 of Steele, Lea and Flood over its index. */
static uint64_t bits_at(uint64_t key, size_t index) {
  uint64_t z = key + ((uint64_t)index + 1) * GOLDEN;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

static void fill(const Feed *feed, uint64_t seed, const Tensor *tensor) {
  const double factor = feed->scale / sqrt(4294967295.0 / 3); /* standard deviation of the sum of four uniform 16-bit numbers */
  const uint64_t key = key_of(feed, seed);
  for (size_t i = 0; i < tensor->elements; i++) {
    if (feed->fill == FILL_CONSTANT) {
      store_real(tensor, i, feed->value);
      continue;
    }
    uint64_t z = bits_at(key, i);
    if (feed->fill == FILL_INTEGERS) {
      store_whole(tensor, i, (z >> 32) * feed->high >> 32);
    } else {
      double lanes = (double)((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
      store_real(tensor, i, (lanes - LANES_MEAN) * factor);
    }
  }
}

bool feed_content(const Feed *feed, uint64_t seed, Tensor *tensor, Failure *failure) {
  tensor->type = element_type(feed->dtype);
  if (!tensor->type) return failed(failure, "the input %.100s: there is no type %.100s", feed->name, feed->dtype);
  tensor->elements = 1;
  for (size_t i = 0; i < feed->rank; i++)
    if (__builtin_mul_overflow(tensor->elements, (size_t)feed->shape[i], &tensor->elements))
      return failed(failure, "out of memory: the input %.100s has more elements than can be counted", feed->name);
  if (__builtin_mul_overflow(tensor->elements, element_bytes(tensor->type), &tensor->bytes))
    return failed(failure, "out of memory: the input %.100s has more bytes than can be counted", feed->name);
  /* calloc, as numpy does: zeros that nobody writes to take no memory, in every agent alike. */
  tensor->data = calloc(tensor->bytes ? tensor->bytes : 1, 1);
  if (!tensor->data) return failed(failure, "out of memory: %zu bytes for the input %.100s", tensor->bytes, feed->name);
  if (feed->fill != FILL_ZEROS) fill(feed, seed, tensor);
  return true;
}
