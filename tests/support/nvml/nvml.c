/* A stand-in for NVIDIA's libnvidia-ml.so.1, for machines without a GPU.
 *
 * It has the C interface that pynvml calls, and no devices of its own: on every call it reads
 * a folder, named by SCRIPTED_NVML, that a test writes (scripted.py):
 *
 *     driver           "key value" lines: version, init CODE, fail.FUNCTION CODE,
 *                      hang FUNCTION (or "all": the call does not return while that stands)
 *     devices/N        a GPU: uuid, name, total, used, lost 1, mig 1, fail.FUNCTION CODE
 *                      and, where the device can say: utilization, temperature, ecc.0, ecc.1
 *     devices/N.M      a MIG device of GPU N
 *     xids             "GPU CODE" lines, only ever appended to: Xid errors as they happen
 *     processes/UUID   "PID BYTES" lines, only ever appended to: memory that a process holds
 *                      on that device. It is freed when the process is dead, as a driver does.
 *                      "stuck BYTES" holds for good, as a driver should not.
 *
 * Without SCRIPTED_NVML there is no driver. So a running process is steered from outside, and
 * what user code "allocates" goes when its process does.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int result_t;
typedef void *device_t;
typedef unsigned long long bytes_t;

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMED_OUT = 10,
    LIBRARY_NOT_FOUND = 12, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15, UNKNOWN = 999
};

enum { MIG_PER_GPU = 7, MOST_GPUS = 64, TEXT = 512 };

static int users;

/* The folder. */

static FILE *open_file(const char *format, ...) {
    const char *folder = getenv("SCRIPTED_NVML");
    char path[2 * TEXT], name[TEXT];
    va_list given;
    if (!folder)
        return NULL;
    va_start(given, format);
    vsnprintf(name, sizeof name, format, given);
    va_end(given);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return fopen(path, "re");
}

/* The value of a key, in a file of "key value" lines; closes the file. */
static int value_of(FILE *file, const char *key, char *value) {
    char line[TEXT], name[TEXT];
    int found = 0;
    if (!file)
        return 0;
    while (!found && fgets(line, sizeof line, file))
        found = sscanf(line, "%511s %511[^\n]", name, value) == 2 && !strcmp(name, key);
    fclose(file);
    return found;
}

static result_t code_of(FILE *file, const char *key) {
    char value[TEXT];
    return value_of(file, key, value) ? atoi(value) : SUCCESS;
}

static result_t failure_of(FILE *file, const char *function) {
    char key[TEXT];
    snprintf(key, sizeof key, "fail.%s", function);
    return code_of(file, key);
}

/* Devices: a handle is 1 + GPU * 8 + (0, or the number of the MIG device + 1). */

static uintptr_t number_of(device_t device) { return (uintptr_t)device - 1; }
static int gpu_of(device_t device) { return number_of(device) / (MIG_PER_GPU + 1); }
static int mig_of(device_t device) { return number_of(device) % (MIG_PER_GPU + 1) - 1; }
static device_t handle_of(int gpu, int mig) {
    return (device_t)(uintptr_t)(1 + gpu * (MIG_PER_GPU + 1) + mig + 1);
}

static FILE *device_file(device_t device) {
    if (mig_of(device) < 0)
        return open_file("devices/%d", gpu_of(device));
    return open_file("devices/%d.%d", gpu_of(device), mig_of(device));
}

static int exists(device_t device) {
    FILE *file = device_file(device);
    if (file)
        fclose(file);
    return file != NULL;
}

static int text_of(device_t device, const char *key, char *value) {
    return value_of(device_file(device), key, value);
}

static bytes_t count_of(device_t device, const char *key) {
    char value[TEXT];
    return text_of(device, key, value) ? strtoull(value, NULL, 10) : 0;
}

/* What every function begins with. */

static result_t begin(const char *function) {
    char hanging[TEXT];
    while (value_of(open_file("driver"), "hang", hanging)
           && (!strcmp(hanging, function) || !strcmp(hanging, "all")))
        usleep(2000);
    return failure_of(open_file("driver"), function);
}

static result_t enter(const char *function) {
    result_t result = begin(function);
    return result ? result : users ? SUCCESS : UNINITIALIZED;
}

static result_t enter_device(const char *function, device_t device) {
    result_t result = enter(function);
    if (result)
        return result;
    if (!device || !exists(device))
        return INVALID_ARGUMENT;
    if (count_of(handle_of(gpu_of(device), -1), "lost"))
        return GPU_IS_LOST;
    return failure_of(device_file(device), function);
}

static result_t copy(const char *text, char *out, unsigned int size) {
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

/* Life. */

result_t nvmlInitWithFlags(unsigned int flags) {
    FILE *file = open_file("driver");
    result_t result;
    (void)flags;
    if (!file)
        return DRIVER_NOT_LOADED;
    fclose(file);
    result = begin("nvmlInit");
    if (!result)
        users++;
    return result;
}

result_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

result_t nvmlShutdown(void) {
    if (!users)
        return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(result_t result) {
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMED_OUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

result_t nvmlSystemGetDriverVersion(char *version, unsigned int size) {
    char text[TEXT] = "0";
    result_t result = enter("nvmlSystemGetDriverVersion");
    if (result)
        return result;
    value_of(open_file("driver"), "version", text);
    return copy(text, version, size);
}

/* GPUs. */

static unsigned int gpus(void) {
    unsigned int count = 0;
    while (count < MOST_GPUS && exists(handle_of(count, -1)))
        count++;
    return count;
}

result_t nvmlDeviceGetCount_v2(unsigned int *count) {
    result_t result = enter("nvmlDeviceGetCount");
    if (!result)
        *count = gpus();
    return result;
}

result_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *device) {
    result_t result = enter("nvmlDeviceGetHandleByIndex");
    if (result)
        return result;
    if (index >= gpus())
        return INVALID_ARGUMENT;
    *device = handle_of(index, -1);
    return count_of(*device, "lost") ? GPU_IS_LOST : SUCCESS;
}

result_t nvmlDeviceGetHandleByUUID(const char *uuid, device_t *device) {
    char text[TEXT];
    int gpu, mig;
    result_t result = enter("nvmlDeviceGetHandleByUUID");
    if (result)
        return result;
    for (gpu = 0; gpu < (int)gpus(); gpu++)
        for (mig = -1; mig < MIG_PER_GPU; mig++)
            if (text_of(handle_of(gpu, mig), "uuid", text) && !strcmp(text, uuid)) {
                *device = handle_of(gpu, mig);
                return count_of(handle_of(gpu, -1), "lost") ? GPU_IS_LOST : SUCCESS;
            }
    return NOT_FOUND;
}

result_t nvmlDeviceGetUUID(device_t device, char *uuid, unsigned int size) {
    char text[TEXT];
    result_t result = enter_device("nvmlDeviceGetUUID", device);
    if (result)
        return result;
    return text_of(device, "uuid", text) ? copy(text, uuid, size) : UNKNOWN;
}

result_t nvmlDeviceGetName(device_t device, char *name, unsigned int size) {
    char text[TEXT];
    result_t result = enter_device("nvmlDeviceGetName", device);
    if (result)
        return result;
    return text_of(device, "name", text) ? copy(text, name, size) : UNKNOWN;
}

static result_t number_out(const char *function, device_t device, unsigned int *number) {
    result_t result = enter_device(function, device);
    if (!result)
        *number = gpu_of(device);
    return result;
}

result_t nvmlDeviceGetIndex(device_t device, unsigned int *index) {
    return number_out("nvmlDeviceGetIndex", device, index);
}

result_t nvmlDeviceGetMinorNumber(device_t device, unsigned int *minor) {
    return number_out("nvmlDeviceGetMinorNumber", device, minor);
}

typedef struct {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_t;

result_t nvmlDeviceGetPciInfo_v3(device_t device, pci_t *pci) {
    result_t result = enter_device("nvmlDeviceGetPciInfo", device);
    if (result)
        return result;
    memset(pci, 0, sizeof *pci);
    pci->bus = 16 + gpu_of(device);
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "0000:%02X:00.0", pci->bus);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    return SUCCESS;
}

/* Processes and memory. */

static int lives(int pid) {
    char path[64], line[TEXT], *behind;
    FILE *file;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    file = fopen(path, "re");
    if (!file)
        return 0;
    /* A name may hold blanks and brackets; the state follows the last bracket. */
    behind = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    fclose(file);
    return behind && behind[1] && behind[2] != 'Z' && behind[2] != 'X';
}

typedef struct {
    unsigned int pid;
    bytes_t used;
    unsigned int gpu_instance, compute_instance;
} process_t;

enum { MOST_PROCESSES = 256 };

/* Live processes, their number; what is stuck is added to *stuck. */
static unsigned int processes(device_t device, process_t *found, bytes_t *stuck) {
    char uuid[TEXT], line[TEXT];
    unsigned int count = 0, i;
    int pid;
    bytes_t held;
    FILE *file;
    *stuck = 0;
    if (!text_of(device, "uuid", uuid) || !(file = open_file("processes/%s", uuid)))
        return 0;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "stuck %llu", &held) == 1)
            *stuck += held;
        else if (sscanf(line, "%d %llu", &pid, &held) == 2 && lives(pid)) {
            for (i = 0; i < count && found[i].pid != (unsigned int)pid; i++)
                ;
            if (i == MOST_PROCESSES)
                continue;
            if (i == count)
                found[count++] = (process_t){ pid, 0, ~0u, ~0u };
            found[i].used += held;
        }
    }
    fclose(file);
    return count;
}

static bytes_t used_by_all(device_t device) {
    process_t found[MOST_PROCESSES];
    bytes_t used;
    unsigned int count = processes(device, found, &used);
    while (count--)
        used += found[count].used;
    return used + count_of(device, "used");
}

typedef struct { bytes_t total, free, used; } memory_t;
typedef struct { unsigned int version; bytes_t total, reserved, free, used; } memory_v2_t;

result_t nvmlDeviceGetMemoryInfo(device_t device, memory_t *memory) {
    result_t result = enter_device("nvmlDeviceGetMemoryInfo", device);
    if (result)
        return result;
    memory->total = count_of(device, "total");
    memory->used = used_by_all(device);
    memory->free = memory->total > memory->used ? memory->total - memory->used : 0;
    return SUCCESS;
}

result_t nvmlDeviceGetMemoryInfo_v2(device_t device, memory_v2_t *memory) {
    memory_t plain;
    result_t result = nvmlDeviceGetMemoryInfo(device, &plain);
    if (result)
        return result;
    memory->total = plain.total;
    memory->reserved = 0;
    memory->free = plain.free;
    memory->used = plain.used;
    return SUCCESS;
}

result_t nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned int *count,
                                                 process_t *out) {
    process_t found[MOST_PROCESSES];
    bytes_t stuck;
    unsigned int room = *count, i;
    result_t result = enter_device("nvmlDeviceGetComputeRunningProcesses", device);
    if (result)
        return result;
    *count = processes(device, found, &stuck);
    if (*count > room)
        return INSUFFICIENT_SIZE;
    for (i = 0; i < *count; i++)
        out[i] = found[i];
    return SUCCESS;
}

/* Health. */

static result_t figure(const char *function, device_t device, const char *key, bytes_t *out) {
    char value[TEXT];
    result_t result = enter_device(function, device);
    if (result)
        return result;
    if (mig_of(device) >= 0 || !text_of(device, key, value))
        return NOT_SUPPORTED;
    *out = strtoull(value, NULL, 10);
    return SUCCESS;
}

typedef struct { unsigned int gpu, memory; } utilization_t;

result_t nvmlDeviceGetUtilizationRates(device_t device, utilization_t *rates) {
    bytes_t value;
    result_t result = figure("nvmlDeviceGetUtilizationRates", device, "utilization", &value);
    if (!result)
        rates->gpu = rates->memory = value;
    return result;
}

result_t nvmlDeviceGetTemperature(device_t device, int sensor, unsigned int *degrees) {
    bytes_t value;
    result_t result = figure("nvmlDeviceGetTemperature", device, "temperature", &value);
    (void)sensor;
    if (!result)
        *degrees = value;
    return result;
}

result_t nvmlDeviceGetTotalEccErrors(device_t device, int kind, int counter, bytes_t *errors) {
    (void)counter;
    return figure("nvmlDeviceGetTotalEccErrors", device, kind ? "ecc.1" : "ecc.0", errors);
}

/* Events: a set is the place in the file of Xid errors up to which it has read, and its GPUs. */

enum { XID_CRITICAL_ERROR = 8 };

typedef struct { long place; bytes_t gpus; } event_set_t;
typedef struct {
    device_t device;
    bytes_t type, data;
    unsigned int gpu_instance, compute_instance;
} event_t;

result_t nvmlEventSetCreate(event_set_t **set) {
    FILE *file;
    result_t result = enter("nvmlEventSetCreate");
    if (result)
        return result;
    *set = calloc(1, sizeof **set);
    file = open_file("xids");
    if (file) {
        fseek(file, 0, SEEK_END);
        (*set)->place = ftell(file);
        fclose(file);
    }
    return SUCCESS;
}

result_t nvmlEventSetFree(event_set_t *set) {
    free(set);
    return SUCCESS;
}

result_t nvmlDeviceRegisterEvents(device_t device, bytes_t types, event_set_t *set) {
    result_t result = enter_device("nvmlDeviceRegisterEvents", device);
    if (result)
        return result;
    if (types != XID_CRITICAL_ERROR || mig_of(device) >= 0)
        return NOT_SUPPORTED;
    set->gpus |= 1ull << gpu_of(device);
    return SUCCESS;
}

/* Answers at once, whatever the time limit is. */
result_t nvmlEventSetWait_v2(event_set_t *set, event_t *event, unsigned int limit_ms) {
    int gpu;
    unsigned long long code;
    FILE *file;
    result_t result = enter("nvmlEventSetWait");
    (void)limit_ms;
    if (result)
        return result;
    if (!(file = open_file("xids")))
        return TIMED_OUT;
    fseek(file, set->place, SEEK_SET);
    result = TIMED_OUT;
    while (result && fscanf(file, "%d %llu\n", &gpu, &code) == 2) {
        set->place = ftell(file);
        if (set->gpus & 1ull << gpu) {
            *event = (event_t){ handle_of(gpu, -1), XID_CRITICAL_ERROR, code, ~0u, ~0u };
            result = SUCCESS;
        }
    }
    fclose(file);
    return result;
}

/* MIG. */

result_t nvmlDeviceGetMigMode(device_t device, unsigned int *current, unsigned int *pending) {
    char value[TEXT];
    result_t result = enter_device("nvmlDeviceGetMigMode", device);
    if (result)
        return result;
    if (!text_of(device, "mig", value))
        return NOT_SUPPORTED;
    *current = *pending = atoi(value);
    return SUCCESS;
}

result_t nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned int *count) {
    char value[TEXT];
    result_t result = enter_device("nvmlDeviceGetMaxMigDeviceCount", device);
    if (!result)
        *count = text_of(device, "mig", value) ? MIG_PER_GPU : 0;
    return result;
}

result_t nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned int index, device_t *out) {
    result_t result = enter_device("nvmlDeviceGetMigDeviceHandleByIndex", device);
    if (result)
        return result;
    if (index >= MIG_PER_GPU)
        return INVALID_ARGUMENT;
    *out = handle_of(gpu_of(device), index);
    return exists(*out) ? SUCCESS : NOT_FOUND;
}

result_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t device, device_t *out) {
    result_t result = enter_device("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", device);
    if (result)
        return result;
    if (mig_of(device) < 0)
        return INVALID_ARGUMENT;
    *out = handle_of(gpu_of(device), -1);
    return SUCCESS;
}

result_t nvmlDeviceIsMigDeviceHandle(device_t device, unsigned int *is) {
    result_t result = enter_device("nvmlDeviceIsMigDeviceHandle", device);
    if (!result)
        *is = mig_of(device) >= 0;
    return result;
}
