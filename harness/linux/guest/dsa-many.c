/*
 * dsa-many DEPTH PAGES QUEUE...
 *
 * As many page faults at once as the queues allow: one process opens all QUEUEs, and puts DEPTH copies of PAGES pages
 * into each before it looks at the first. Sources, destinations and completion records are memory that nobody has
 * touched, so every page of them is a page request. Afterwards all data is compared.
 */
#define _GNU_SOURCE
#include "dsa.h"

enum { PAGE = 4096, QUEUES_MAX = 64 };

int main(int argc, char **argv)
{
	int depth = argc > 3 ? atoi(argv[1]) : 0, pages = argc > 3 ? atoi(argv[2]) : 0, queues = argc - 3;
	int done = 0, failed = 0, missing = 0, wrong = 0, first_status = 0;
	size_t each = (size_t)pages * PAGE, jobs;
	struct queue queue[QUEUES_MAX];
	uint8_t *pattern, *sources, *destinations, *records;
	double start, until;

	if (depth < 1 || pages < 1 || queues > QUEUES_MAX)
		return 2;
	snprintf(speaker, sizeof speaker, "dsa-many");
	for (int q = 0; q < queues; q++) {
		int error = queue_open(&queue[q], argv[3 + q]);

		if (error) {
			say("open %s errno=%s", argv[3 + q], errno_name(error));
			say("end failures=1");
			return 1;
		}
	}

	jobs = (size_t)depth * queues;
	pattern = mmap(NULL, each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sources = mmap(NULL, jobs * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	destinations = mmap(NULL, jobs * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	records = mmap(NULL, jobs * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (pattern == MAP_FAILED || sources == MAP_FAILED || destinations == MAP_FAILED || records == MAP_FAILED)
		return 3;
	/* huge pages would answer hundreds of requests with one fault */
	madvise(sources, jobs * each, MADV_NOHUGEPAGE);
	madvise(destinations, jobs * each, MADV_NOHUGEPAGE);
	madvise(records, jobs * PAGE, MADV_NOHUGEPAGE);
	say("submit queues=%d descriptors=%zu pages=%zu", queues, jobs, jobs * (2 * pages + 1));

	/* untouched sources read as zeros; every other job fills instead, so that data differs from untouched memory */
	memset(pattern, 0xa5, each);
	start = seconds();
	for (int slot = 0; slot < depth; slot++) {
		for (int q = 0; q < queues; q++) {
			size_t job = (size_t)slot * queues + q;
			struct record *record = (struct record *)(records + job * PAGE);
			struct descriptor descriptor = describe(OP_MEMMOVE, record, sources + job * each, destinations + job * each, each);

			if (job & 1) {
				descriptor = describe(OP_FILL, record, NULL, destinations + job * each, each);
				descriptor.source = 0xa5a5a5a5a5a5a5a5;
			}
			submit(&queue[q], &descriptor);
		}
	}
	until = seconds() + 20;
	for (size_t job = 0; job < jobs; job++) {
		const struct record *record = (struct record *)(records + job * PAGE);
		const uint8_t *expected = job & 1 ? pattern : sources + job * each;
		int status = await_status(record, until);

		missing += status == STATUS_NONE;
		done += status == STATUS_SUCCESS;
		if (status != STATUS_NONE && status != STATUS_SUCCESS) {
			if (!failed++)
				first_status = status;
		}
		wrong += status == STATUS_SUCCESS && memcmp(destinations + job * each, expected, each) != 0;
	}
	say("result done=%d failed=%d first-status=0x%02x missing=%d wrong=%d ms=%.0f", done, failed, first_status, missing, wrong, (seconds() - start) * 1e3);
	say("end failures=%d", failed + missing + wrong);
	return failed + missing + wrong != 0;
}
