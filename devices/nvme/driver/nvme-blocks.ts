/** Reads and writes of physical memory: mapped by the DMA API, cut into commands, all commands in flight at once. */
import { Errno, isErrno } from '../../../sim/errno.js';
import type { Steps, Task } from '../../../sim/task.js';
import { blockWords, IO } from '../spec/commands.js';
import type { NvmeDev } from './nvme-dev.js';
import type { DmaSegment, ScatterEntry } from './nvme-options.js';
import { commandsOf } from './prp-lists.js';

/** The namespace that the driver uses. */
const NSID = 1;

export interface BlockTransfer {
  readonly write: boolean;
  /** First block. */
  readonly lba: number;
  /** Where the bytes lie, in order. */
  readonly list: readonly ScatterEntry[];
  /** Queue pair, modulo their number; a processor's. */
  readonly queue: number;
  /** Force unit access. */
  readonly fua?: boolean;
  /** Called when the buffer could be given back though the controller may use it: for a defect. */
  readonly onUnmapped?: () => void;
}

/**
 * Moves blocks between the namespace and memory; returns when all commands have ended and nothing is mapped any more.
 * @throws Errno EINVAL pieces that are no whole blocks, or meet so that no command can take them; EIO; what the DMA API refuses
 */
export function* transferBlocks(dev: NvmeDev, transfer: BlockTransfer): Steps {
  yield* dev.using(() => mapAndMove(dev, transfer));
}

function* mapAndMove(dev: NvmeDev, transfer: BlockTransfer): Steps {
  const { dma, defects } = dev.services;
  const segments: readonly DmaSegment[] = yield* dma.dmaMapSg(dev.pci, transfer.list, transfer.write ? 'to-device' : 'from-device');
  const early = defects?.has('nvme-driver.unmap-before-completion') === true;
  let mapped = true;
  try {
    const moving = start(dev, transfer, segments);
    if (early) {
      // the commands are in the queue when the pages go
      mapped = false;
      yield* dma.dmaUnmapSg(dev.pci, segments);
      transfer.onUnmapped?.();
    }
    yield* finish(moving);
  } finally {
    if (mapped) yield* dma.dmaUnmapSg(dev.pci, segments);
  }
}

function start(dev: NvmeDev, transfer: BlockTransfer, segments: readonly DmaSegment[]): Task<Errno | undefined>[] {
  const blockBytes = 2 ** dev.identity.blockShift, commands = commandsOf(segments, dev.identity.maxTransfer);
  if (commands.some(({ sizeBytes }) => sizeBytes % blockBytes !== 0)) throw new Errno('EINVAL', `${dev.name}: a buffer that is cut inside a block of ${blockBytes} bytes`);
  let { lba } = transfer;
  return commands.map(({ pieces, sizeBytes }) => {
    const first = lba;
    lba += sizeBytes / blockBytes;
    return dev.services.scheduler.spawn(`${dev.name} command`, one(dev, transfer, pieces, blockWords(first, sizeBytes / blockBytes)), { daemon: true });
  });
}

/** One command; its refusal as a value, so that the others end before the buffer goes. */
function* one(dev: NvmeDev, { write, queue, fua }: BlockTransfer, pieces: readonly DmaSegment[], words: readonly number[]): Steps<Errno | undefined> {
  try {
    const prps = yield* dev.prps.describe(pieces);
    try {
      const [low, high, count] = words as [number, number, number];
      yield* dev.ioCommand({ opcode: write ? IO.WRITE : IO.READ, nsid: NSID, prp1: prps.prp1, prp2: prps.prp2, cdw: [low, high, count | (fua === true ? 0x4000_0000 : 0)] }, queue);
    } finally {
      dev.prps.put(prps);
    }
    return undefined;
  } catch (error) {
    if (!isErrno(error)) throw error;
    return error;
  }
}

function* finish(moving: readonly Task<Errno | undefined>[]): Steps {
  let failed: Errno | undefined;
  for (const task of moving) failed = (yield* task.join()) ?? failed;
  if (failed !== undefined) throw failed;
}

/** Everything written before is safe when this returns. EIO. */
export function* flushBlocks(dev: NvmeDev, queue: number): Steps {
  if (!dev.identity.writeCache) return;
  yield* dev.using(() => dev.ioCommand({ opcode: IO.FLUSH, nsid: NSID }, queue));
}
