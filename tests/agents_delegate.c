/* A TFLite external delegate for tests, against the C interface that has been the same since 2018.

   It computes nothing. Options: `take` is the code of the builtin operator whose nodes it takes
   (none without it), `mode` is what goes wrong: error, abort or hang when it is made; and with
   -later behind it when it is given a graph, with -call when a node of its is called, with -end
   when it is destroyed after that. Any other option is refused. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int size; int data[]; } IntArray;

typedef struct {
  void *init, *free;
  int (*prepare)(void *context, void *node);
  int (*invoke)(void *context, void *node);
  void *profiling_string;
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *other[4];
} Registration;

typedef struct Context {
  size_t tensors_size;
  int (*execution_plan)(struct Context *, IntArray **plan);
  void *tensors, *impl, *resize_tensor, *report_error, *add_tensors;
  int (*node_and_registration)(struct Context *, int node, void **, Registration **);
  int (*replace)(struct Context *, Registration, const IntArray *nodes, void *delegate);
} Context;

typedef struct {
  void *data;
  int (*prepare)(Context *, void *delegate);
  void *copy_from, *copy_to, *free_buffer;
  int64_t flags;
  void *opaque;
  int take;
  int used;
  const char *mode;
} Delegate;

/* Does what the mode says is to go wrong at a moment; else tells whether an error is to. */
static int misbehave(const char *mode, const char *moment) {
  const char *dash = strchr(mode, '-');
  if (strcmp(dash ? dash : "", moment)) return 0;
  if (!strncmp(mode, "abort", 5)) abort();
  if (!strncmp(mode, "hang", 4)) for (;;) ;
  return !strncmp(mode, "error", 5);
}

static const char *mode_of_calls = "";
static int nothing(void *context, void *node) { return 0; }
static int call(void *context, void *node) { return misbehave(mode_of_calls, "-call"); }

static int prepare(Context *context, void *given) {
  Delegate *delegate = given;
  delegate->used = 1;
  if (misbehave(delegate->mode, "-later")) return 1;
  IntArray *plan;
  if (context->execution_plan(context, &plan)) return 1;
  IntArray *nodes = malloc(sizeof *nodes + plan->size * sizeof *nodes->data);
  nodes->size = 0;
  for (int i = 0; i < plan->size; i++) {
    void *node;
    Registration *registration;
    if (context->node_and_registration(context, plan->data[i], &node, &registration)) return 1;
    if (registration->builtin_code == delegate->take) nodes->data[nodes->size++] = plan->data[i];
  }
  Registration kernel = {.prepare = nothing, .invoke = call, .custom_name = "Nothing"};
  kernel.version = 1;
  int status = nodes->size ? context->replace(context, kernel, nodes, delegate) : 0;
  free(nodes);
  return status;
}

void *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                    void (*report)(const char *)) {
  int take = -1;
  const char *mode = "";
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(keys[i], "take")) take = atoi(values[i]);
    else if (!strcmp(keys[i], "mode")) mode = strdup(values[i]);
    else { report("unknown option"); return NULL; }
  }
  if (misbehave(mode, "")) { report("no DSP on this device"); return NULL; }
  Delegate *delegate = calloc(1, sizeof *delegate);
  delegate->prepare = prepare;
  delegate->take = take;
  delegate->mode = mode_of_calls = mode;
  return delegate;
}

void tflite_plugin_destroy_delegate(void *given) {
  Delegate *delegate = given;
  if (delegate->used) misbehave(delegate->mode, "-end");
  free(delegate);
}
