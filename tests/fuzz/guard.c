/* NumPy's memory between pages that nobody may touch.
 *
 * One range of addresses is reserved, inaccessible, and cut into slots. An array gets the pages that it needs in the
 * middle of a slot: it ends exactly where they end, or begins where they begin, in turn, so that the first byte beyond
 * is a segmentation fault. What is left of the pages holds a pattern that is looked at when the array is freed. New
 * memory holds bytes that are NaN as floats; freed memory is inaccessible until its slot's turn comes again. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE ((size_t)4096)
#define SLOT ((size_t)1 << 22)
#define LARGEST (SLOT / 2 - 2 * PAGE)
#define SLOTS ((size_t)8192)
#define FRESH 0xFF
#define BEYOND 0xA5

static struct { size_t size, pages; unsigned char *data; } slots[SLOTS];
static size_t unused[SLOTS], first, count; /* a queue: the slot freed longest ago is taken first */
static unsigned char *range;
static size_t turn;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned char *begin(size_t slot) { return range + slot * SLOT + PAGE; }

static void fail(const char *what) {
    fprintf(stderr, "guard: %s\n", what);
    abort();
}

int guard_begin(void) {
    if (range) return 0;
    void *address = mmap(NULL, SLOTS * SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) return -1;
    range = address;
    for (count = 0; count < SLOTS; count++) unused[count] = count;
    return 0;
}

/* Whether arrays end or begin at a guard: which of the two is the first one's. */
void guard_turn(size_t value) { turn = value; }

static int inside(void *pointer) {
    return (unsigned char *)pointer >= range && (unsigned char *)pointer < range + SLOTS * SLOT;
}

static void *take(void *context, size_t size) {
    (void)context;
    pthread_mutex_lock(&lock);
    if (size > LARGEST || !count) {
        pthread_mutex_unlock(&lock);
        return malloc(size ? size : 1);
    }
    size_t slot = unused[first];
    first = (first + 1) % SLOTS;
    count--;
    size_t pages = (size + PAGE - 1) / PAGE * PAGE;
    unsigned char *start = begin(slot);
    if (pages && mprotect(start, pages, PROT_READ | PROT_WRITE)) {
        pthread_mutex_unlock(&lock);
        return NULL;
    }
    unsigned char *data = turn++ % 4 == 3 ? start : start + pages - size;
    memset(start, BEYOND, pages);
    memset(data, FRESH, size);
    slots[slot].size = size, slots[slot].pages = pages, slots[slot].data = data;
    pthread_mutex_unlock(&lock);
    return data;
}

static void give_back(void *context, void *pointer, size_t size) {
    (void)context, (void)size;
    if (!pointer) return;
    if (!inside(pointer)) {
        free(pointer);
        return;
    }
    pthread_mutex_lock(&lock);
    size_t slot = (size_t)((unsigned char *)pointer - range) / SLOT;
    if (slots[slot].data != pointer) fail("freed where no array begins, or twice");
    unsigned char *start = begin(slot), *end = start + slots[slot].pages, *after = slots[slot].data + slots[slot].size;
    for (unsigned char *byte = start; byte < slots[slot].data; byte++)
        if (*byte != BEYOND) fail("a byte before an array was written");
    for (unsigned char *byte = after; byte < end; byte++)
        if (*byte != BEYOND) fail("a byte behind an array was written");
    slots[slot].data = NULL;
    if (slots[slot].pages) {
        madvise(start, slots[slot].pages, MADV_DONTNEED);
        mprotect(start, slots[slot].pages, PROT_NONE);
    }
    unused[(first + count++) % SLOTS] = slot;
    pthread_mutex_unlock(&lock);
}

static void *take_zeros(void *context, size_t number, size_t size) {
    void *data = take(context, number * size);
    if (data) memset(data, 0, number * size);
    return data;
}

static void *take_again(void *context, void *pointer, size_t size) {
    if (pointer && !inside(pointer)) return realloc(pointer, size ? size : 1);
    void *data = take(context, size);
    if (data && pointer) {
        size_t before = slots[(size_t)((unsigned char *)pointer - range) / SLOT].size;
        memcpy(data, pointer, before < size ? before : size);
        give_back(context, pointer, before);
    }
    return data;
}

/* PyDataMem_Handler of NumPy's C API, version 1. */
struct {
    char name[127];
    uint8_t version;
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *, size_t);
} guard_handler = {"guard", 1, NULL, take, take_zeros, take_again, give_back};
