/**
 * The device of `sample-device.ts` on a socket, in the place of libvfio-user's sample server: with it the sample client
 * of that project, a program of others, can be run against ours.
 *
 *   npx tsx test/vfio-user/sample-server.mts [-v] SOCKET
 *
 * The client starts the server that it migrates to by itself, as `server -v SOCKET_migrated` in its own directory: an
 * executable of that name has to be there that passes its arguments on to this one, from the root of this project.
 * Then, with CLIENT being the client's path:
 *
 *   npx tsx test/vfio-user/sample-server.mts -v /tmp/sample.sock & CLIENT /tmp/sample.sock
 *
 * It went well if the client printed "INTx triggered!" twice and "CRC mismatch" never, and if both servers end with
 * status 0 and the line "moved 8 pieces by messages"; the client's own exit status is that of the second server. A server ends when
 * its client has left. -v prints each message.
 */
import { Scheduler } from '../../sim/task.js';
import { WallClock } from '../../sim/wall-clock.js';
import type { VfioUserTrace } from '../../vfio/user/index.js';
import { posixCalls, SharedMemory, VfioUserServer } from '../../vfio/user/posix/index.js';
import { BAR1_BYTES, SampleDevice } from './sample-device.js';

const verbose = process.argv[2] === '-v';
const path = process.argv[verbose ? 3 : 2];
if (path === undefined) {
  console.error('usage: sample-server.mts [-v] SOCKET');
  process.exit(2);
}

const bugs: unknown[] = [];
const clock = new WallClock((error) => bugs.push(error));
const scheduler = new Scheduler(clock, (error) => clock.fail(error));
const device = new SampleDevice(scheduler, () => Date.now() / 1000);
const say = (...words: unknown[]): void => {
  if (verbose) console.log('server:', ...words);
};
const trace: VfioUserTrace = {
  connected: (_device, minor) => say('client of version 0', minor),
  disconnected: (_device, why) => say(why),
  command: (_device, command, bytes, descriptors) => say('command', command, 'bytes', bytes, 'descriptors', descriptors),
  refused: (_device, command, errno) => say('refused', command, errno),
  dmaMap: (_device, address, sizeBytes) => say('map', address, sizeBytes),
  dmaUnmap: (_device, address, sizeBytes) => say('unmap', address, sizeBytes),
};
const bar1 = new SharedMemory(posixCalls(), 'sample-bar1', BAR1_BYTES, true);
const server = new VfioUserServer({
  path, scheduler, trace, onBug: (error) => bugs.push(error),
  device: {
    ops: device,
    connectDma: (memory) => device.connectDma(memory),
    // what is mapped is not what migrates: the client maps it and never looks
    regionFile: (index) => (index === 1 ? { descriptor: bar1.descriptor, fileOffset: 0, sparse: [{ offset: 0, sizeBytes: 0x1000 }, { offset: 0x2000, sizeBytes: 0x1000 }] } : undefined),
  },
});

scheduler.spawn('sample server', (function* () {
  yield* server.start();
  yield* server.until(() => server.connections > 0 && !server.busy);
  yield* server.stop();
  bar1.close();
  clock.stop();
  const failed = device.moved.filter((one) => one !== undefined && one !== 'done');
  for (const error of [...bugs, ...failed]) console.error('server:', error);
  console.log(`server: moved ${device.moved.filter((one) => one === undefined).length} pieces by messages`);
  process.exitCode = bugs.length + failed.length > 0 ? 1 : 0;
})());
