/* The interface of a compiled model, around the sources that TL2cgen makes: the only names that its library shows.
 *
 * Theirs scores one row of unions in which a missing feature is the integer -1, and adds to the result; ours takes rows of floats in which
 * NaN is a missing one, and may be called by several threads at once.
 */
#include "header.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int32_t mev_abi_version(void) { return MEV_ABI; }
EXPORT int32_t mev_num_feature(void) { return MEV_FEATURES; }
EXPORT const char *mev_model_id(void) { return MEV_MODEL_ID; }

EXPORT int32_t mev_predict(const float *x, size_t rows, size_t columns, int margin, float *out) {
  if (columns != MEV_FEATURES) return -1;
  union Entry *row = malloc(sizeof *row * MEV_FEATURES);
  if (!row) return -1;
  for (size_t i = 0; i < rows; i++) {
    for (size_t j = 0; j < columns; j++) {
      float value = x[i * columns + j];
      if (value != value) row[j].missing = -1;
      else row[j].fvalue = value;
    }
    out[i] = 0;
    predict(row, margin, out + i);
  }
  free(row);
  return 0;
}
