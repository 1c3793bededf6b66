/*
 * sysfs-write FILE TEXT: one write, as sysfs wants it, and the name of its error on stdout ("0" for none), which the
 * shell cannot tell. Exits with 0 when the write was accepted, 1 when not.
 */
#define _GNU_SOURCE
#include "guest.h"

int main(int argc, char **argv)
{
	int file, error = 0;

	if (argc != 3)
		return 2;
	file = open(argv[1], O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, argv[2], strlen(argv[2])) < 0)
		error = errno;
	puts(errno_name(error));
	return error != 0;
}
