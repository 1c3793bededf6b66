/**
 * Refused requests carry the kernel's error names and numbers (include/uapi/asm-generic/errno-base.h, errno.h;
 * ENOTSUPP is the kernel-internal 524 of include/linux/errno.h).
 */
export const ERRNO = {
  EPERM: 1, ENOENT: 2, ESRCH: 3, EINTR: 4, EIO: 5, ENXIO: 6, E2BIG: 7, EBADF: 9, EAGAIN: 11, ENOMEM: 12,
  EACCES: 13, EFAULT: 14, EBUSY: 16, EEXIST: 17, EXDEV: 18, ENODEV: 19, ENOTDIR: 20, EISDIR: 21, EINVAL: 22, EMFILE: 24, ENOTTY: 25,
  ENOSPC: 28, ESPIPE: 29, EPIPE: 32, EDOM: 33, ERANGE: 34, ENAMETOOLONG: 36, ENOSYS: 38, ENOMSG: 42, EPROTO: 71, EOVERFLOW: 75, EUSERS: 87, EOPNOTSUPP: 95,
  EADDRINUSE: 98, ECONNRESET: 104, ENOTCONN: 107, ETIMEDOUT: 110, ECONNREFUSED: 111, ECANCELED: 125, ENOTSUPP: 524,
} as const;

export type ErrnoName = keyof typeof ERRNO;

/** A request was refused; nothing has changed. `message` names the missing link of the chain. */
export class Errno extends Error {
  override readonly name = 'Errno';
  readonly code: ErrnoName;
  /** The negative number a C caller would see, e.g. -16 for EBUSY. */
  readonly errno: number;

  constructor(code: ErrnoName, reason: string) {
    super(`-${code}: ${reason}`);
    this.code = code;
    this.errno = -ERRNO[code];
  }
}

export function isErrno(error: unknown, code?: ErrnoName): error is Errno {
  return error instanceof Errno && (code === undefined || error.code === code);
}
