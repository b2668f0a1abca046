/* Reads models in the .mevt form (docs/models.md) and scores rows with them.
 *
 * Everything a file says is checked once, when it is opened: after that no row can make the walk leave the tables or go round in a
 * circle. An open model is never written to, so any number of threads may score with it. Sums are made in float, tree by tree in the
 * order of the file, and the logistic function is written as XGBoost writes it: the scores are equal to the last bit.
 *
 * Plain C without Python's headers: a compiler is all that an installation needs.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { ABI = 1, VERSION = 1, HEADER = 32, NODE = 12, BLOCK = 32 };
enum { LOGISTIC = 1, SQUARED_ERROR = 2 };
enum {
  OK, NO_MEMORY, TOO_SHORT, BAD_MAGIC, BAD_VERSION, BAD_OBJECTIVE, BAD_SHAPE, BAD_LENGTH, BAD_BASE, BAD_ROOT, BAD_CHILD, BAD_FEATURE,
  BAD_VALUE
};

/* An inner node goes to `child` where the feature is less than `value`, else to `child + 1`; a leaf has child 0 and its weight in `value`.
 * The uppermost bit of `feature` says where a missing one goes: set, to `child + 1`. */
typedef struct {
  float value;
  uint32_t child;
  uint32_t feature;
} Node;

typedef struct {
  uint32_t objective, features, trees, nodes;
  float base;
  uint32_t *roots;
  Node *table;
} Model;

static uint32_t read_u32(const uint8_t *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static float read_f32(const uint8_t *at) {
  uint32_t bits = read_u32(at);
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static int check_header(const uint8_t *data, size_t size, Model *model) {
  if (size < HEADER) return TOO_SHORT;
  if (memcmp(data, "MEVT", 4) != 0) return BAD_MAGIC;
  if (read_u32(data + 4) != VERSION) return BAD_VERSION;
  model->objective = read_u32(data + 8);
  model->features = read_u32(data + 12);
  model->trees = read_u32(data + 16);
  model->nodes = read_u32(data + 20);
  model->base = read_f32(data + 24);
  if (model->objective != LOGISTIC && model->objective != SQUARED_ERROR) return BAD_OBJECTIVE;
  if (model->features == 0 || model->features > 0x7FFFFFFFu || model->trees == 0 || model->nodes < model->trees) return BAD_SHAPE;
  if (read_u32(data + 28) != 0) return BAD_SHAPE;
  if ((uint64_t)size != HEADER + 4 * (uint64_t)model->trees + NODE * (uint64_t)model->nodes) return BAD_LENGTH;
  if (model->objective == LOGISTIC) {
    if (!(model->base > 0 && model->base < 1)) return BAD_BASE;
    model->base = -logf(1.0f / model->base - 1.0f);
  }
  return isfinite(model->base) ? OK : BAD_BASE;
}

static int read_tree(const uint8_t *nodes, uint32_t start, uint32_t end, Model *model) {
  for (uint32_t i = start; i < end; i++) {
    const uint8_t *at = nodes + NODE * (size_t)i;
    Node node = {read_f32(at), read_u32(at + 4), read_u32(at + 8)};
    if (!isfinite(node.value)) return BAD_VALUE;
    if (node.child == 0) {
      if (node.feature != 0) return BAD_FEATURE;
    } else {
      if (node.child <= i || node.child >= end - 1) return BAD_CHILD; /* child + 1 is a node of this tree too */
      if ((node.feature & 0x7FFFFFFFu) >= model->features) return BAD_FEATURE;
    }
    model->table[i] = node;
  }
  return OK;
}

static int read_trees(const uint8_t *data, Model *model) {
  const uint8_t *roots = data + HEADER, *nodes = roots + 4 * (size_t)model->trees;
  for (uint32_t tree = 0; tree < model->trees; tree++) {
    uint32_t start = read_u32(roots + 4 * (size_t)tree);
    uint32_t end = tree + 1 < model->trees ? read_u32(roots + 4 * (size_t)tree + 4) : model->nodes;
    if ((tree == 0 && start != 0) || start >= end || end > model->nodes) return BAD_ROOT;
    model->roots[tree] = start;
    int error = read_tree(nodes, start, end, model);
    if (error) return error;
  }
  return OK;
}

EXPORT int32_t mevt_abi(void) { return ABI; }

EXPORT void mevt_close(Model *model) {
  if (!model) return;
  free(model->roots);
  free(model->table);
  free(model);
}

/* Returns the model in `data`, which may be freed afterwards; or NULL, and the reason in `error`. */
EXPORT Model *mevt_open(const uint8_t *data, size_t size, int32_t *error) {
  Model header = {0};
  *error = check_header(data, size, &header);
  if (*error) return NULL;
  Model *model = malloc(sizeof *model);
  if (model) {
    *model = header;
    model->roots = malloc(4 * (size_t)header.trees);
    model->table = malloc(sizeof(Node) * (size_t)header.nodes);
  }
  *error = !model || !model->roots || !model->table ? NO_MEMORY : read_trees(data, model);
  if (!*error) return model;
  mevt_close(model);
  return NULL;
}

/* Writes objective, features, trees and nodes. */
EXPORT void mevt_shape(const Model *model, uint32_t *out) {
  out[0] = model->objective;
  out[1] = model->features;
  out[2] = model->trees;
  out[3] = model->nodes;
}

static float leaf(const Node *table, uint32_t at, const float *row) {
  for (;;) {
    Node node = table[at];
    if (node.child == 0) return node.value;
    float x = row[node.feature & 0x7FFFFFFFu];
    uint32_t missing = (uint32_t)(x != x) & node.feature >> 31; /* a comparison with NaN is false */
    at = node.child + ((uint32_t)(x >= node.value) | missing);
  }
}

static float logistic(float margin) {
  float negated = -margin < 88.7f ? -margin : 88.7f; /* beyond it expf overflows */
  return 1.0f / (expf(negated) + 1.0f + 1e-16f);
}

/* Scores `rows` rows of as many floats as the model has features; NaN is a missing one. Returns 0, or -1 for rows of another width. */
EXPORT int32_t mevt_predict(const Model *model, const float *x, size_t rows, size_t columns, int32_t margin, float *out) {
  if (columns != model->features) return -1;
  /* A tree stays in the cache while a block of rows goes through it. */
  for (size_t start = 0; start < rows; start += BLOCK) {
    size_t end = rows - start < BLOCK ? rows : start + BLOCK;
    for (size_t row = start; row < end; row++) out[row] = model->base;
    for (uint32_t tree = 0; tree < model->trees; tree++) {
      for (size_t row = start; row < end; row++) out[row] += leaf(model->table, model->roots[tree], x + row * columns);
    }
    if (margin || model->objective != LOGISTIC) continue;
    for (size_t row = start; row < end; row++) out[row] = logistic(out[row]);
  }
  return 0;
}
