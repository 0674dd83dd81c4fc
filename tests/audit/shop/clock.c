/* A clock that others move: preloaded into a process, it adds as many seconds to the time of day as stand
 * in a file, as a number of eight bytes that may change at any moment. Clocks that only measure go on.
 * libfaketime does not do here: it allocates while it is asked for the time, which Redis' allocator asks. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *moved_by;

__attribute__((constructor)) static void begin(void) {
	const char *path = getenv("MOVED_CLOCK");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (file < 0)
		return;
	void *at = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (at != MAP_FAILED)
		moved_by = at;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
	int failed = (int)syscall(SYS_clock_gettime, clock, now);
	if (!failed && moved_by && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += *moved_by;
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
	struct timespec exact;
	(void)zone;
	if (clock_gettime(CLOCK_REALTIME, &exact))
		return -1;
	now->tv_sec = exact.tv_sec;
	now->tv_usec = exact.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *kept) {
	struct timespec exact;
	if (clock_gettime(CLOCK_REALTIME, &exact))
		return (time_t)-1;
	if (kept)
		*kept = exact.tv_sec;
	return exact.tv_sec;
}
