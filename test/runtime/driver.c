/* Stands in for the CUDA driver (-DCUDA) and the HIP runtime: records launches and runs three tiny kernels. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef CUDA
#define NAME(cuda, hip) cuda
#else
#define NAME(cuda, hip) hip
#endif
enum { WIDTH = 8, WORDS = 8 };
typedef struct { int64_t grid[3], block[3], shared, stream, words[WORDS], m, scratch, early; } Launch;
typedef struct Function { const char *image; char symbol[32]; int shared; struct Function *next; } Function;
static Function *functions;
Launch launches[64];
int64_t launched, refuse, attribute, attribute_value, inits, contexts;
int NAME(cuModuleLoadData, hipModuleLoadData)(void **module, const void *image) {
    if (memcmp(image, "code ", 5)) return 200;
    *module = strdup(image);
    return 0;
}
int NAME(cuModuleGetFunction, hipModuleGetFunction)(void **function, void *module, const char *symbol) {
    if (strcmp(symbol, "absent") == 0) return 500;
    for (Function *f = functions; f; f = f->next)
        if (f->image == module && !strcmp(f->symbol, symbol)) {
            *function = f;
            return 0;
        }
    Function *made = calloc(1, sizeof(Function));
    *made = (Function){.image = module, .next = functions};
    strcpy(made->symbol, symbol);
    *function = functions = made;
    return 0;
}
int NAME(cuLaunchKernel, hipModuleLaunchKernel)(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
        unsigned by, unsigned bz, unsigned shared, void *stream, void **params, void **extra) {
    if (refuse || extra) return 1;
    int scales = !strcmp(f->symbol, "scale_rows"), count = scales ? 4 : !strcmp(f->symbol, "add_one") ? 2 : 3;
    Launch *l = &launches[launched++];
    *l = (Launch){{gx, gy, gz}, {bx, by, bz}, shared, (int64_t)stream};
    for (int i = 0; i < count; i++) l->words[i] = *(int64_t *)params[i];
    l->m = *(int32_t *)params[count];
    for (int i = 1; i <= 2; i++) l->scratch |= *(int64_t *)params[count + i];
    float *x = (float *)l->words[0], *out = (float *)l->words[count - 1];
    for (int64_t row = 0; row < l->m; row++) for (int c = 0; c < WIDTH; c++) {
        if (scales) out[row * WIDTH + c] = x[row * l->words[1] + c] * ((float *)l->words[2])[c];
        else if (count == 2) out[row * WIDTH + c] = x[row * WIDTH + c] + 1;
        else out[row * WIDTH + c] = row < *(int32_t *)l->words[1] ? x[row * WIDTH + c] : 0;
    }
    return 0;
}
#ifdef CUDA
typedef struct { int id; char pad[4]; union { char pad[64]; int value; } value; } Attribute;
typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream;
    Attribute *attributes;
    unsigned count;
} Config;
int cuLaunchKernelEx(const Config *c, Function *f, void **params, void **extra) {
    if (c->count != 1 || c->attributes[0].id != 6 || c->attributes[0].value.value != 1) return 1;
    int code = cuLaunchKernel(f, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared,
        c->stream, params, extra);
    if (!code) launches[launched - 1].early = 1;
    return code;
}
int cuInit(unsigned flags) { inits++; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(0x700000000 + device); return 0; }
int cuCtxSetCurrent(void *context) { if (context != (void *)0x700000000) return 201; contexts++; return 0; }
int cuFuncSetAttribute(Function *f, int what, int value) { attribute = what; attribute_value = f->shared = value; return 0; }
int cuFuncGetAttribute(int *value, int what, Function *f) { *value = what == 8 ? f->shared : 0; return 0; }
int cuGetErrorString(int code, const char **text) { *text = code == 1 ? "invalid argument" : "bad image"; return 0; }
#else
const char *hipGetErrorString(int code) { return code == 1 ? "invalid argument" : "bad image"; }
#endif
