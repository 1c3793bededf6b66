/*
 * dsa-test QUEUE [--loop N] [--exit-without-close] [--timeout SECONDS]
 *
 * One process with one dedicated work queue, on virtual addresses of its own. Each line says what was asked for and what
 * came of it; the last one is "end failures=N". Failures are what contradicts the manual or the data; the DMA to memory
 * that was unmapped must not succeed.
 *
 *   --loop N              only N copies with comparison: load, while something else happens to the device
 *   --exit-without-close  leaves everything to exit_mmap and the release of the file
 */
#define _GNU_SOURCE
#include "dsa.h"

enum { COPY_BYTES = 20000, AREA_BYTES = 64 << 10, FILL_BYTES = 4096, CRC_BYTES = 4096 };

static struct queue queue;
static struct record *record;
static double patience = 5;
static int failures;

static void check(int holds)
{
	failures += !holds;
}

/*
 * Submits, waits, prints "what status=… result=… …"; the caller knows what is right. Without an answer nothing that
 * follows would mean anything, and the record could still be written to: that is the end.
 */
static int run(const char *what, const struct descriptor *descriptor)
{
	double start = seconds();
	int status;

	memset((void *)record, 0, sizeof *record);
	submit(&queue, descriptor);
	status = await_status(record, start + patience);
	say("%s status=0x%02x result=%u completed=%u fault=0x%llx us=%.0f%s", what, status, record->result, record->completed,
	    (unsigned long long)record->fault_address, (seconds() - start) * 1e6, status == STATUS_NONE ? " timeout" : "");
	if (status == STATUS_NONE) {
		say("end failures=%d", failures + 1);
		_exit(1);
	}
	return status;
}

/* CRC-32C (RFC 3720, B.4), which is what CRC Generation computes with seed 0 and no flags of its own. */
static uint32_t crc32c(const uint8_t *bytes, size_t count)
{
	uint32_t crc = ~0u;

	while (count--) {
		crc ^= *bytes++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (0x82f63b78u & -(crc & 1));
	}
	return ~crc;
}

static void copy_and_compare(const char *what, const uint8_t *source, uint8_t *destination)
{
	struct descriptor copy = describe(OP_MEMMOVE, record, source, destination, COPY_BYTES);
	int status = run(what, &copy);
	int equal = status == STATUS_SUCCESS && memcmp(source, destination, COPY_BYTES) == 0;

	say("%s-data equal=%s", what, equal ? "yes" : "no");
	check(equal);
}

static void operations(const uint8_t *source, uint8_t *destination)
{
	const uint64_t pattern = 0x1122334455667788;
	uint64_t *filled = (uint64_t *)(destination + 2 * FILL_BYTES);
	struct descriptor fill = describe(OP_FILL, record, NULL, filled, FILL_BYTES);
	struct descriptor compare = describe(OP_COMPARE, record, source, destination, FILL_BYTES);
	int right = 1;

	fill.source = pattern;
	check(run("fill", &fill) == STATUS_SUCCESS);
	for (int i = 0; i < FILL_BYTES / 8; i++)
		right &= filled[i] == pattern;
	say("fill-data right=%s", right ? "yes" : "no");
	check(right);

	/* the fill has changed bytes 8192 and on; before them the areas are equal, with them they are not */
	check(run("compare-equal", &compare) == STATUS_SUCCESS && record->result == 0);
	compare.size = 3 * FILL_BYTES;
	check(run("compare-different", &compare) == STATUS_SUCCESS && record->result == 1);
}

static void checksum(const uint8_t *source)
{
	struct descriptor crc = describe(OP_CRC, record, source, NULL, CRC_BYTES);
	uint32_t expected = crc32c(source, CRC_BYTES);
	int status = run("crc", &crc);

	say("crc-data found=0x%08x expected=0x%08x", (uint32_t)record->specific[0], expected);
	check(status == STATUS_SUCCESS && (uint32_t)record->specific[0] == expected);
}

static int load(int count, const uint8_t *source, uint8_t *destination)
{
	int done = 0, wrong = 0, last = STATUS_SUCCESS;
	double start = seconds();

	for (; done < count && last == STATUS_SUCCESS; done++) {
		struct descriptor descriptor = describe(OP_MEMMOVE, record, source, destination, COPY_BYTES);

		destination[done % COPY_BYTES] ^= 0xff;
		memset((void *)record, 0, sizeof *record);
		submit(&queue, &descriptor);
		last = await_status(record, seconds() + patience);
		wrong += last == STATUS_SUCCESS && memcmp(source, destination, COPY_BYTES) != 0;
	}
	say("load done=%d wrong=%d last-status=0x%02x fault=0x%llx ms=%.0f", done, wrong, last, (unsigned long long)record->fault_address,
	    (seconds() - start) * 1e3);
	return wrong + (last != STATUS_SUCCESS);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? strrchr(argv[1], '/') : NULL;
	int loop = 0, leave = 0, error, second, status;
	struct descriptor last;
	uint8_t *source, *destination;

	if (argc < 2)
		return 2;
	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "--exit-without-close"))
			leave = 1;
		else if (!strcmp(argv[i], "--loop") && i + 1 < argc)
			loop = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--timeout") && i + 1 < argc)
			patience = atof(argv[++i]);
		else
			return 2;
	}
	snprintf(speaker, sizeof speaker, "dsa-test %s", name ? name + 1 : argv[1]);
	error = queue_open(&queue, argv[1]);
	say("open errno=%s", errno_name(error));
	if (error) {
		say("end failures=1");
		return 1;
	}

	source = malloc(AREA_BYTES);
	record = aligned_alloc(4096, 4096);
	destination = mmap(NULL, AREA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!source || !record || destination == MAP_FAILED)
		return 3;
	for (int i = 0; i < AREA_BYTES; i++)
		source[i] = i * 7 + (i >> 8) + getpid();
	memset((void *)record, 0, 4096);
	if (loop) {
		failures = load(loop, source, destination);
		say("end failures=%d", failures);
		return failures != 0;
	}

	second = open(argv[1], O_RDWR | O_CLOEXEC);
	error = second < 0 ? errno : 0;
	say("second-open errno=%s", errno_name(error));
	check(error == EBUSY);
	if (second >= 0)
		close(second);

	say("addresses source=%p destination=%p record=%p", (void *)source, (void *)destination, (void *)record);
	copy_and_compare("memmove", source, destination);
	copy_and_compare("memmove-again", source, destination);
	operations(source, destination);
	checksum(source);

	if (leave) {
		say("exit-without-close failures=%d", failures);
		_exit(failures != 0);
	}

	say("munmap errno=%s", errno_name(munmap(destination, AREA_BYTES) ? errno : 0));
	last = describe(OP_MEMMOVE, record, source, destination, 64);
	status = run("after-munmap", &last);
	check(status != STATUS_SUCCESS);

	error = munmap((void *)queue.portal, 4096) || close(queue.file) ? errno : 0;
	say("close errno=%s", errno_name(error));
	check(error == 0);
	say("end failures=%d", failures);
	return failures != 0;
}
