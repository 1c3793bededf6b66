/** The interface of Intel SVM's first users over the generic bind (U1, B3, B7). */
import { describe, expect, it } from 'vitest';
import {
  IntelSvm, SVM_FLAG_PRIVATE_PASID, SVM_FLAG_SUPERVISOR_MODE, SVM_RD, SVM_WR, type SvmDevOps,
} from '../../iommu/intel-vtd/driver/intel-svm.js';
import { DriverWorld } from './vtd-driver-world.js';

function svmWorld() {
  const world = new DriverWorld().start();
  const dsa = world.svaFunction();
  const svm = new IntelSvm(world.core);
  const calls: string[] = [];
  const ops: SvmDevOps = { faultCb: (device, pasid, page, rwxp, response) => calls.push(`${device.name} pasid ${pasid} page ${page.toString(16)} rwxp ${rwxp} response ${response}`) };
  return { world, dsa, svm, calls, ops, mm: world.process() };
}

describe('intel-svm', () => {
  it('tells the user of every request of a group how it ended, with the wire\'s code (U1)', () => {
    const { world, dsa, svm, calls, ops, mm } = svmWorld();
    const pasid = world.run(svm.bindMm(dsa, mm, 0, ops));
    const page = world.run(mm.mmap(4096)) / 4096;
    world.unit.pageRequest(dsa.sourceId, pasid, page, 1, false, 3);
    world.unit.pageRequest(dsa.sourceId, pasid, page, 3, true, 3);
    world.settle();
    const at = `${dsa.name} pasid ${pasid} page ${page.toString(16)}`;
    expect(calls).toEqual([`${at} rwxp ${SVM_RD} response 0`, `${at} rwxp ${SVM_RD | SVM_WR} response 0`]);
    calls.length = 0;
    world.unit.pageRequest(dsa.sourceId, pasid, 0x10, 1, true, 4);
    world.settle();
    expect(calls).toEqual([`${dsa.name} pasid ${pasid} page 10 rwxp ${SVM_RD} response 1`]);
  });

  it('is the same bond as the generic bind: one PASID, a reference for each bind (B3, U1)', () => {
    const { world, dsa, svm, ops, mm } = svmWorld();
    const pasid = world.run(svm.bindMm(dsa, mm, 0, ops));
    expect(world.run(svm.bindMm(dsa, mm, 0, ops))).toBe(pasid);
    expect(world.core.svaGetPasid(dsa, mm)).toBe(pasid);
    world.run(svm.unbindMm(dsa, pasid));
    expect(world.core.bondState(dsa, pasid)).toBe('BOUND');
    world.run(svm.unbindMm(dsa, pasid));
    expect(world.core.bondState(dsa, pasid)).toBe('NONE');
  });

  it('refuses other ops, supervisor mode with a process, private PASIDs, unknown flags and what it has not bound (B7)', () => {
    const { world, dsa, svm, ops, mm } = svmWorld();
    const pasid = world.run(svm.bindMm(dsa, mm, 0, ops));
    expect(world.refused(svm.bindMm(dsa, mm, 0, { faultCb: () => {} }))).toBe('EBUSY');
    for (const flags of [SVM_FLAG_SUPERVISOR_MODE, SVM_FLAG_PRIVATE_PASID, 4]) expect(world.refused(svm.bindMm(dsa, mm, flags, ops))).toBe('EINVAL');
    expect(world.refused(svm.unbindMm(dsa, pasid + 1))).toBe('EINVAL');
    expect([world.core.usage.bonds, world.core.bondState(dsa, pasid)]).toEqual([1, 'BOUND']);
  });

  it('is silent once it is closed or nothing is bound', () => {
    const { world, dsa, svm, calls, ops, mm } = svmWorld();
    const pasid = world.run(svm.bindMm(dsa, mm, 0, ops));
    svm.close();
    world.unit.pageRequest(dsa.sourceId, pasid, 0x10, 1, true, 4);
    world.settle();
    expect(calls).toEqual([]);
  });
});
