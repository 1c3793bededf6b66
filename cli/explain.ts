import { explainImage, parseImageWalk } from '../harness/explain/image.js';
import { openImages, readSmallFile } from '../harness/explain/image-files.js';
import { explainLog } from '../harness/explain/log.js';
import { readRegisters } from '../harness/explain/register-file.js';
import { imageText, logText, toJson } from '../harness/explain/text.js';
import { EXIT } from './exit.js';
import { WrongUsage } from './failure.js';
import type { Io } from './io.js';

const MAX_LOG_BYTES = 64 * 2 ** 20;

interface ExplainOptions {
  readonly image: readonly string[];
  readonly registers?: string;
  readonly unit?: string;
  readonly walk?: string;
  /** A file, or true for standard input. */
  readonly log?: string | true;
  readonly json?: boolean;
}

/** Explains the bytes of a stopped machine, or the lines of a kernel log. */
export function explain(io: Io, options: ExplainOptions): number {
  if (options.log !== undefined) {
    if (options.image.length > 0 || options.registers !== undefined || options.walk !== undefined) throw new WrongUsage('--log explains a log on its own; --image, --registers and --walk belong to an image');
    const file = options.log === true ? '-' : options.log;
    const report = explainLog(Buffer.from(readSmallFile(file, MAX_LOG_BYTES, 'a log')).toString('utf8'));
    io.stdout.write(options.json === true ? toJson(report) : logText(report));
    return EXIT.ok;
  }
  if (options.registers === undefined) throw new WrongUsage('explain needs --log FILE, or --registers FILE with --image FILE');
  const walk = options.walk === undefined ? undefined : parseImageWalk(options.walk);
  if (typeof walk === 'string') throw new WrongUsage(`--walk: ${walk}`);
  const registers = readRegisters(options.registers, options.unit);
  const image = openImages(options.image);
  try {
    const report = explainImage(image.memory, registers, walk);
    io.stdout.write(options.json === true ? toJson(report) : imageText(report));
    return EXIT.ok;
  } finally {
    image.close();
  }
}
