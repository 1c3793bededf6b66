/*
 * What the guest's programs share: lines for the console, and the names of errors.
 *
 * Lines go to the kernel log (/dev/kmsg), one write each. There the kernel keeps them whole and in order with its own
 * messages; written to the terminal they would be cut in two whenever the kernel prints something meanwhile.
 */
#ifndef GUEST_H
#define GUEST_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Words between GUEST and the text of each line: who speaks. */
static char speaker[96];

static void say(const char *format, ...) __attribute__((format(printf, 1, 2), unused));
static void say(const char *format, ...)
{
	static int log = -1;
	char line[900];
	int length = snprintf(line, sizeof line, "GUEST %s ", speaker);
	va_list arguments;

	va_start(arguments, format);
	length += vsnprintf(line + length, sizeof line - length - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	if (log < 0)
		log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (write(log >= 0 ? log : STDOUT_FILENO, line, length) < 0)
		_exit(4);
}

/* "EBUSY", or "0" for no error. */
__attribute__((unused)) static const char *errno_name(int error)
{
	const char *name = error == 0 ? "0" : strerrorname_np(error);

	return name ? name : "E?";
}

__attribute__((unused)) static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

#endif
