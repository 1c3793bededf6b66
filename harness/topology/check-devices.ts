/** What a schema cannot say about one device. */
import { checkFile } from './check-steps.js';
import { unique, type Report } from './problems.js';
import type { DeviceTopology, Topology } from './schema.js';

export function checkDsa(device: Extract<DeviceTopology, { model: 'dsa' }>, host: Pick<Topology['host'], 'ports'>, at: (key: string) => PropertyKey[], report: Report): void {
  if (device.pri !== false && !device.ats) report(at('pri'), 'page requests (PRI) need ats: true');
  const port = host.ports.find((candidate) => candidate.name === device.port);
  if (port?.['translation-blocking'] === true && device.ats) report(at('ats'), `switch "${port.name}" blocks translated requests (ACS TB), so ATS cannot work behind it; set ats: false or translation-blocking: false`);
  const entries = device['work-queues'].reduce((sum, queue) => sum + queue.size, 0);
  if (entries > 1024) report(at('work-queues'), `queues have ${entries} entries together; allowed: at most 1024`);
  device['work-queues'].forEach((queue, i) => {
    const key = (name: string): PropertyKey[] => [...at('work-queues'), i, name];
    if (queue.group >= device.groups) report(key('group'), `${queue.group} does not exist; the device has ${device.groups} group(s), numbered from 0`);
    if (queue.threshold !== undefined && queue.mode === 'dedicated') report(key('threshold'), 'only shared queues have a threshold');
    if (queue.threshold !== undefined && queue.threshold > queue.size) report(key('threshold'), `${queue.threshold} is larger than the queue's size of ${queue.size}`);
  });
  unique(device['work-queues'].map((queue, i) => queue.name ?? `wq0.${i}`), (name) => name, (i, first) => report([...at('work-queues'), i, 'name'], `is taken by work-queues[${first}]`));
  if (device.engines < device.groups) report(at('engines'), `${device.engines} engines for ${device.groups} groups; every group needs one`);
}

const MAX_NAMESPACE = 2 ** 44;

export function checkNvme(device: Extract<DeviceTopology, { model: 'nvme' }>, directory: string, at: (key: string) => PropertyKey[], report: Report): void {
  if (device.size < 4096 || device.size > MAX_NAMESPACE) report(at('size'), `${device.size} bytes; allowed: 4KiB to 16TiB`);
  if (device.size % 512 !== 0) report(at('size'), `${device.size} bytes are no whole number of blocks of 512 bytes`);
  if (device.image !== undefined) checkFile(device.image, { directory, report }, at('image'));
}
