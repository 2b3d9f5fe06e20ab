/* Stands in for NVIDIA's management library: one GPU, whose clock falls by 100 MHz at every read. */
#include <string.h>
typedef struct { unsigned field, scope; long long timestamp, latency; unsigned kind, status, value[2]; } Field;
static unsigned reads;
int instant = 1;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    *handle = &reads;
    return strcmp(uuid, "GPU-1234") ? 6 : 0;
}
int nvmlDeviceGetClockInfo(void *handle, int kind, unsigned *mhz) {
    if (handle != &reads) return 2;
    *mhz = kind == 1 ? 2000 - 100 * reads++ : 3201;
    return 0;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) { return 3; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    *reasons = reads == 2 ? 0x4 : 0;
    return 0;
}
int nvmlDeviceGetFieldValues(void *handle, int count, Field *field) {
    field->status = !instant || field->field != 186 || count != 1;
    field->value[0] = 650500;
    return 0;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) { *milliwatts = 600000; return 0; }
