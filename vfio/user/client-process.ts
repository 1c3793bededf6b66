/**
 * Stands for a client where the kernel's interface speaks of a calling process: VFIO_DEVICE_FEATURE opens the file of
 * a migration in the caller (`data_fd`). It is a process of the server's side with a little memory of its own; the
 * client's memory is `ClientMemory`.
 */
import { Ram } from '../../sim/memory.js';
import type { Scheduler } from '../../sim/task.js';
import { FrameAllocator } from '../../host/frames.js';
import { Mm } from '../../host/mm/mm.js';
import { Process } from '../../host/process.js';

const MEMORY_BYTES = 64 * 4096;

export function clientProcess(name: string, scheduler: Scheduler): Process {
  const memory = new Ram(MEMORY_BYTES);
  const frames = new FrameAllocator({ memory, ranges: [{ start: 4096, end: MEMORY_BYTES }] });
  return new Process(1, name, new Mm({ id: 1, name, memory, frames, scheduler }));
}
