/*
 * A user work queue of an Intel Data Streaming Accelerator, as a program has it: /dev/dsa/wqX.Y opened, one page of
 * portal mapped. Numbers of descriptors and completion records are those of the uapi header linux/idxd.h and of the
 * Intel DSA Architecture Specification, chapter 8.
 */
#ifndef DSA_H
#define DSA_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "guest.h"

enum { OP_NOOP = 0x00, OP_MEMMOVE = 0x03, OP_FILL = 0x04, OP_COMPARE = 0x05, OP_CRC = 0x10 };
/* block on fault; completion record address valid; request completion record */
enum { BLOCK_ON_FAULT = 0x02, RECORD_VALID = 0x04, RECORD_WANTED = 0x08 };
enum { STATUS_NONE = 0x00, STATUS_SUCCESS = 0x01, STATUS_PAGE_FAULT = 0x03, STATUS_MASK = 0x3f, STATUS_WRITE = 0x80 };

struct descriptor {
	uint32_t pasid; /* the hardware takes the queue's */
	uint32_t flags_and_operation;
	uint64_t record;
	uint64_t source; /* or the pattern of a fill */
	uint64_t destination; /* or the second source of a compare */
	uint32_t size;
	uint32_t interrupt;
	uint64_t specific[3];
} __attribute__((aligned(64)));

struct record {
	volatile uint8_t status;
	uint8_t result;
	uint16_t reserved;
	uint32_t completed;
	uint64_t fault_address;
	uint64_t specific[2];
} __attribute__((aligned(32)));

struct queue {
	const char *path;
	int file;
	volatile uint64_t *portal;
};

_Static_assert(sizeof(struct descriptor) == 64 && sizeof(struct record) == 32, "sizes of the hardware");

/* 0, or the errno of open or mmap. */
static int queue_open(struct queue *queue, const char *path)
{
	queue->path = path;
	queue->file = open(path, O_RDWR | O_CLOEXEC);
	if (queue->file < 0)
		return errno;
	queue->portal = mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, queue->file, 0);
	return queue->portal == MAP_FAILED ? errno : 0;
}

/*
 * Eight stores of eight bytes. Real hardware wants MOVDIR64B, which QEMU's translator does not have; a portal that
 * collects stores starts with the last one, which is why their order matters.
 */
static void submit(const struct queue *queue, const struct descriptor *descriptor)
{
	uint64_t words[8];

	memcpy(words, descriptor, sizeof words);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (int i = 0; i < 8; i++)
		queue->portal[i] = words[i];
}

static struct descriptor describe(int operation, struct record *record, const void *source, const void *destination, uint32_t size)
{
	struct descriptor descriptor = {
		.flags_and_operation = (uint32_t)operation << 24 | BLOCK_ON_FAULT | RECORD_VALID | RECORD_WANTED,
		.record = (uintptr_t)record,
		.source = (uintptr_t)source,
		.destination = (uintptr_t)destination,
		.size = size,
	};

	return descriptor;
}

/* Waits until the record has a status; 0 when none comes before the time is over. */
static int await_status(const struct record *record, double until)
{
	while (record->status == STATUS_NONE && seconds() < until)
		usleep(20);
	return record->status;
}

#endif
