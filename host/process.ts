/**
 * A process: an address space and open files. Only what decides who may still use a device after fork, exec and
 * exit. The order at the end is Linux' do_exit (kernel/exit.c): exit_mm drops the address space first, then
 * exit_files closes what is open, so a device learns of the dead address space before its file is released.
 *
 * Left out: threads, signals, credentials, process groups; exit codes mean nothing here.
 */
import { assert } from '../sim/assert.js';
import { Errno } from '../sim/errno.js';
import type { Steps } from '../sim/task.js';
import type { MmOptions } from './mm/mm-core.js';
import { Mm } from './mm/mm.js';

/** What a driver keeps per open of a device or a container (`struct file_operations.release`). */
export interface OpenFile {
  readonly name: string;
  /** The last descriptor of this open file, in whichever process, is gone. */
  release(): Steps;
}

/** A file that takes ioctls: a container, a group, a device. */
export interface IoctlFile extends OpenFile {
  /**
   * Carries out a command for `caller`, in whose memory the argument's record lies.
   * @param argument an address of the caller, or the number itself for commands that take one
   * @returns what the system call returns, 0 or more. ENOTTY unknown command, EFAULT, and what the command refuses.
   */
  ioctl(caller: Process, command: number, argument: number): Steps<number>;
}

/** An open file that somebody uses beside its descriptors (`struct fd`). */
export interface HeldFile {
  readonly file: OpenFile;
  /** Ends the use; releases the file when its last descriptor has gone meanwhile. Once. */
  put(): Steps;
}

/** An open file with the number of its descriptors, which fork raises, and of calls that use it. */
class FileDescription implements HeldFile {
  readonly file: OpenFile;
  readonly closeOnExec: boolean;
  references = 1;

  constructor(file: OpenFile, closeOnExec: boolean) {
    this.file = file;
    this.closeOnExec = closeOnExec;
  }

  *put(): Steps {
    if (--this.references === 0) yield* this.file.release();
  }
}

export type ProcessState = 'running' | 'exiting' | 'exited';

export class Process {
  readonly pid: number;
  name: string;
  /** The process holds one user of it until it exits. */
  mm: Mm;
  state: ProcessState = 'running';
  private files: (FileDescription | undefined)[] = [];

  /** Takes over one user of `mm`: a new address space comes with it. */
  constructor(pid: number, name: string, mm: Mm) {
    this.pid = pid;
    this.name = name;
    this.mm = mm;
  }

  /** Lowest free descriptor, which now refers to `file`. ESRCH when the process is ending. */
  open(file: OpenFile, options: { closeOnExec?: boolean } = {}): number {
    this.checkRunning('open');
    let fd = this.files.indexOf(undefined);
    if (fd < 0) fd = this.files.length;
    this.files[fd] = new FileDescription(file, options.closeOnExec ?? false);
    return fd;
  }

  /** EBADF when the descriptor is closed. */
  file(fd: number): OpenFile {
    return this.description(fd).file;
  }

  /** fdget: the file is not released before `put`, whoever closes its descriptors meanwhile. EBADF. */
  hold(fd: number): HeldFile {
    const description = this.description(fd);
    description.references++;
    return description;
  }

  /** Open descriptors, ascending. */
  descriptors(): number[] {
    return this.files.flatMap((description, fd) => (description === undefined ? [] : [fd]));
  }

  /** ioctl(2) on a descriptor; the file stays open until it ends. EBADF, ENOTTY when the file takes none, or what the file says. */
  *ioctl(fd: number, command: number, argument: number): Steps<number> {
    const held = this.hold(fd), { file } = held;
    try {
      if (!('ioctl' in file)) throw new Errno('ENOTTY', `${file.name} takes no ioctl`);
      return yield* (file as IoctlFile).ioctl(this, command, argument);
    } finally {
      yield* held.put();
    }
  }

  /** Closes a descriptor; the last one of its open file releases it. EBADF. */
  *close(fd: number): Steps {
    this.file(fd);
    yield* this.drop(fd);
  }

  /** A child with a copy of the address space and the same open files (B13). ENOMEM, ESRCH. */
  *fork(pid: number, name = this.name, mmId = pid): Steps<Process> {
    this.checkRunning('fork');
    const child = new Process(pid, name, yield* this.mm.fork(mmId, name));
    child.files = [...this.files];
    for (const description of this.files) if (description !== undefined) description.references++;
    return child;
  }

  /**
   * Becomes another program: a new, empty address space; the old one is put first, then descriptors that are marked
   * close-on-exec are closed (fs/exec.c begin_new_exec). ENOMEM, ESRCH.
   */
  *exec(name: string, options: MmOptions): Steps {
    this.checkRunning('exec');
    const old = this.mm;
    this.mm = new Mm({ ...options, name });
    this.name = name;
    yield* old.put();
    for (const fd of this.descriptors()) if (this.files[fd]?.closeOnExec === true) yield* this.drop(fd);
  }

  /**
   * Ends the process, of its own will or killed: its user of the address space goes, then its descriptors in
   * ascending order. Ending twice does nothing.
   */
  *exit(): Steps {
    if (this.state !== 'running') return;
    this.state = 'exiting';
    yield* this.mm.put();
    // another task of the process may close one meanwhile
    for (const fd of this.descriptors()) if (this.files[fd] !== undefined) yield* this.drop(fd);
    assert(this.descriptors().length === 0, `${this.name} exited with open files`);
    this.state = 'exited';
  }

  private *drop(fd: number): Steps {
    const description = this.files[fd]!;
    this.files[fd] = undefined;
    yield* description.put();
  }

  private description(fd: number): FileDescription {
    const description = this.files[fd];
    if (description === undefined) throw new Errno('EBADF', `descriptor ${fd} of ${this.name} is not open`);
    return description;
  }

  private checkRunning(what: string): void {
    if (this.state !== 'running') throw new Errno('ESRCH', `${what}: process ${this.pid} (${this.name}) is ${this.state}`);
  }
}

/** The processes of a kernel by pid (`find_task_by_vpid`). */
export class ProcessTable {
  private readonly byPid = new Map<number, Process>();

  add(process: Process): void {
    this.byPid.set(process.pid, process);
  }

  /** A process that has not begun to end. */
  find(pid: number): Process | undefined {
    const process = this.byPid.get(pid);
    if (process?.state === 'running') return process;
    this.byPid.delete(pid);
    return undefined;
  }
}
