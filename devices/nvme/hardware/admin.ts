/** Admin commands (NVMe 1.4 section 5), with the statuses that a host may meet. */
import type { Steps } from '../../../sim/task.js';
import { ADMIN, CQ_IEN, DNR, DW10, DW11, DW12, DW13, DW_PRP1, EVENT, FUSE_MASK, NSID_ALL, PSDT_MASK, QUEUE_PC, STATUS } from '../spec/commands.js';
import { CNS } from '../spec/identify.js';
import { FEATURE, LOG, SELECT } from '../spec/logs.js';
import { CC, CQES, SQES } from '../spec/registers.js';
import { Features } from './features.js';
import { controllerList, EVENT_LIMIT, identifyController, identifyNamespace, namespaceDescriptors, namespaceList } from './identify.js';
import { NSID } from './io.js';
import type { NvmeController } from './controller.js';
import { placeOf, SubmissionQueue, type Command } from './queues.js';
import { FORGOTTEN } from './transfer.js';

const INVALID_FIELD = STATUS.INVALID_FIELD | DNR;
const INVALID_NAMESPACE = STATUS.INVALID_NAMESPACE | DNR;
/** Set Features and Get Log Page: keep, do not clear the event; save. */
const RETAIN_EVENT = 0x8000;
const SAVE = 0x8000_0000;
/** Asynchronous event configuration: temperature warnings. */
const EVENTS_TEMPERATURE = 2;

export class AdminUnit {
  private readonly controller: NvmeController;

  constructor(controller: NvmeController) {
    this.controller = controller;
  }

  /** Answers a status, or FORGOTTEN. */
  *execute(command: Command, life: number): Steps<number> {
    if ((command.words[0]! & (FUSE_MASK | PSDT_MASK)) !== 0) return INVALID_FIELD;
    switch (command.opcode) {
      case ADMIN.CREATE_CQ: return this.createCompletionQueue(command);
      case ADMIN.CREATE_SQ: return this.createSubmissionQueue(command);
      case ADMIN.DELETE_SQ: return yield* this.deleteSubmissionQueue(command, life);
      case ADMIN.DELETE_CQ: return this.deleteCompletionQueue(command);
      case ADMIN.IDENTIFY: return yield* this.identify(command, life);
      case ADMIN.GET_LOG_PAGE: return yield* this.getLogPage(command, life);
      case ADMIN.SET_FEATURES: return this.setFeatures(command);
      case ADMIN.GET_FEATURES: return this.getFeatures(command);
      case ADMIN.ABORT: return yield* this.abort(command, life);
      case ADMIN.ASYNC_EVENT: return this.controller.events.park(command, EVENT_LIMIT + 1) ? STATUS.SUCCESS : STATUS.ASYNC_LIMIT | DNR;
      default: return STATUS.INVALID_OPCODE | DNR;
    }
  }

  // --- queues ---------------------------------------------------------------------------------------------------

  private createCompletionQueue({ words }: Command): number {
    const { controller } = this, { config } = controller;
    const id = words[DW10]! & 0xffff, size = (words[DW10]! >>> 16) + 1, vector = words[DW11]! >>> 16;
    if (id === 0 || id > config.ioQueues || controller.cqs[id] !== undefined) return STATUS.QID_INVALID | DNR;
    if (size < 2 || size > config.queueEntries || CC.f.IOCQES.get([controller.controllerConfiguration]) !== CQES) return STATUS.QUEUE_SIZE | DNR;
    if (words[DW_PRP1]! % controller.memoryPageBytes !== 0) return STATUS.INVALID_PRP_OFFSET | DNR;
    if (vector > config.ioQueues || (vector > 0 && !controller.messageSignalled)) return STATUS.INVALID_VECTOR | DNR;
    // CAP.CQR
    if ((words[DW11]! & QUEUE_PC) === 0) return INVALID_FIELD;
    controller.newCompletionQueue(id, placeOf(words[DW_PRP1]!, words[DW_PRP1 + 1]!, size), vector, (words[DW11]! & CQ_IEN) !== 0);
    return STATUS.SUCCESS;
  }

  private createSubmissionQueue({ words }: Command): number {
    const { controller } = this, { config } = controller;
    const id = words[DW10]! & 0xffff, size = (words[DW10]! >>> 16) + 1, cqid = words[DW11]! >>> 16;
    const cq = cqid === 0 ? undefined : controller.cqs[cqid];
    if (cq === undefined) return (cqid === 0 || cqid > config.ioQueues ? STATUS.QID_INVALID : STATUS.CQ_INVALID) | DNR;
    if (id === 0 || id > config.ioQueues || controller.sqs[id] !== undefined) return STATUS.QID_INVALID | DNR;
    if (size < 2 || size > config.queueEntries || CC.f.IOSQES.get([controller.controllerConfiguration]) !== SQES) return STATUS.QUEUE_SIZE | DNR;
    if (words[DW_PRP1]! % controller.memoryPageBytes !== 0) return STATUS.INVALID_PRP_OFFSET | DNR;
    if ((words[DW11]! & QUEUE_PC) === 0) return INVALID_FIELD;
    controller.sqs[id] = new SubmissionQueue(id, placeOf(words[DW_PRP1]!, words[DW_PRP1 + 1]!, size), cq);
    return STATUS.SUCCESS;
  }

  /** What was fetched ends first: aborted while it waits at the medium, as it may where its data is on the way. */
  private *deleteSubmissionQueue({ words }: Command, life: number): Steps<number> {
    const { controller } = this;
    const id = words[DW10]! & 0xffff, sq = id === 0 ? undefined : controller.sqs[id];
    if (sq === undefined || sq.deleting) return STATUS.QID_INVALID | DNR;
    sq.deleting = true;
    for (const command of sq.commands.values()) if (command.waiting) command.cancel(STATUS.ABORT_SQ_DELETED);
    yield* controller.ended.until(() => life !== controller.life || (!sq.fetching && sq.inFlight === 0));
    if (life !== controller.life) return FORGOTTEN;
    controller.sqs[id] = undefined;
    sq.completions.users--;
    return STATUS.SUCCESS;
  }

  private deleteCompletionQueue({ words }: Command): number {
    const { controller } = this;
    const id = words[DW10]! & 0xffff, cq = id === 0 ? undefined : controller.cqs[id];
    if (cq === undefined) return STATUS.QID_INVALID | DNR;
    if (cq.users > 0) return STATUS.INVALID_QUEUE_DELETION | DNR;
    controller.dropCompletionQueue(cq);
    return STATUS.SUCCESS;
  }

  // --- data to the host -----------------------------------------------------------------------------------------

  private *identify(command: Command, life: number): Steps<number> {
    const data = this.identifyData(command);
    return typeof data === 'number' ? data : yield* this.answer(command, data, life);
  }

  private identifyData({ words, nsid }: Command): Uint8Array | number {
    const { config, options } = this.controller, { serial, mdts, blockShift } = config;
    const cntid = words[DW10]! >>> 16;
    switch (words[DW10]! & 0xff) {
      case CNS.CONTROLLER: return identifyController({ serial, mdts });
      case CNS.NAMESPACE:
      case CNS.ALLOCATED_NAMESPACE:
        // capabilities common to all namespaces are not offered: NSID FFFFFFFFh needs namespace management
        return nsid === NSID
          ? identifyNamespace({ serial, blockShift, blocks: Math.floor(options.medium.sizeBytes / 2 ** blockShift), readOnly: options.medium.readOnly ?? false })
          : INVALID_NAMESPACE;
      case CNS.ACTIVE_NAMESPACES:
      case CNS.ALLOCATED_NAMESPACES: return nsid >= NSID_ALL - 1 ? INVALID_NAMESPACE : namespaceList(nsid);
      case CNS.NAMESPACE_DESCRIPTORS: return nsid === NSID ? namespaceDescriptors(serial) : INVALID_NAMESPACE;
      case CNS.NAMESPACE_CONTROLLERS: return nsid === NSID ? controllerList(cntid) : INVALID_FIELD;
      case CNS.CONTROLLERS: return controllerList(cntid);
      default: return INVALID_FIELD;
    }
  }

  private *getLogPage(command: Command, life: number): Steps<number> {
    const { controller } = this, { words, nsid } = command;
    const id = words[DW10]! & 0xff, wanted = ((words[DW10]! >>> 16) + (words[DW11]! & 0xffff) * 0x1_0000 + 1) * 4;
    const offset = words[DW12]! + words[DW13]! * 0x1_0000_0000;
    const page = controller.logs.page(id, controller.options.clock.now, controller.features.temperatureWarning);
    if (page === undefined) return STATUS.INVALID_LOG_PAGE | DNR;
    // the SMART log is the controller's, not a namespace's
    if (id === LOG.SMART && nsid !== 0 && nsid !== NSID_ALL) return INVALID_FIELD;
    if (offset % 4 !== 0 || offset > page.length) return INVALID_FIELD;
    const status = yield* this.answer(command, page.subarray(offset, offset + wanted), life);
    if (status === STATUS.SUCCESS && (words[DW10]! & RETAIN_EVENT) === 0) {
      if (id === LOG.ERROR) controller.events.read(EVENT.ERROR);
      if (id === LOG.SMART) controller.events.read(EVENT.SMART);
    }
    return status;
  }

  private *answer(command: Command, data: Uint8Array, life: number): Steps<number> {
    if (data.length === 0) return STATUS.SUCCESS;
    const transfer = this.controller.transfer(command, life);
    let status = yield* transfer.locate(data.length);
    if (status === STATUS.SUCCESS) status = yield* transfer.store(data);
    if (status !== STATUS.SUCCESS) return status;
    return (yield* this.controller.pay(transfer, life)) ? STATUS.SUCCESS : FORGOTTEN;
  }

  // --- features -------------------------------------------------------------------------------------------------

  private setFeatures(command: Command): number {
    const { controller } = this, { words, nsid } = command, feature = words[DW10]! & 0xff, value = words[DW11]!;
    const capabilities = Features.capabilities(feature);
    if (capabilities === undefined) return INVALID_FIELD;
    if ((words[DW10]! & SAVE) !== 0) return STATUS.FEATURE_NOT_SAVEABLE | DNR;
    const refused = checkNamespace(feature, nsid);
    if (refused !== STATUS.SUCCESS) return refused;
    if (feature === FEATURE.QUEUES) {
      if ((value & 0xffff) === 0xffff || value >>> 16 === 0xffff) return INVALID_FIELD;
      if (controller.sqs.some((sq) => sq !== undefined && sq.id > 0) || controller.cqs.some((cq) => cq !== undefined && cq.id > 0)) return STATUS.SEQUENCE | DNR;
    }
    const status = controller.features.set(feature, value);
    if (status !== STATUS.SUCCESS) return status;
    if (feature === FEATURE.QUEUES) command.result = controller.features.get(feature, 0)!;
    const warns = feature === FEATURE.TEMPERATURE || feature === FEATURE.EVENTS;
    if (warns && controller.features.temperatureWarning && (controller.features.events & EVENTS_TEMPERATURE) !== 0) controller.events.happened(EVENT.SMART, EVENT.TEMPERATURE, LOG.SMART);
    return STATUS.SUCCESS;
  }

  private getFeatures(command: Command): number {
    const { controller } = this, { words, nsid } = command, feature = words[DW10]! & 0xff, select = (words[DW10]! >>> 8) & 7;
    const capabilities = Features.capabilities(feature);
    if (capabilities === undefined || select > SELECT.CAPABILITIES) return INVALID_FIELD;
    const refused = checkNamespace(feature, nsid);
    if (refused !== STATUS.SUCCESS) return refused;
    if (select === SELECT.CAPABILITIES) {
      command.result = capabilities;
      return STATUS.SUCCESS;
    }
    // nothing can be saved: what is saved are the defaults
    const features = select === SELECT.CURRENT ? controller.features : new Features(controller.config.ioQueues);
    const value = features.get(feature, words[DW11]!);
    if (value === undefined) return INVALID_FIELD;
    command.result = value;
    return STATUS.SUCCESS;
  }

  /** Takes a command back that waits at the medium, or a parked event request; its completion comes before this one's. */
  private *abort(command: Command, life: number): Steps<number> {
    const { controller } = this, { words } = command;
    const target = controller.sqs[words[DW10]! & 0xffff]?.commands.get(words[DW10]! >>> 16);
    command.result = 1;
    if (target === undefined || !target.waiting || target.cancelled !== 0) return STATUS.SUCCESS;
    if (target.parked) {
      target.waiting = false;
      controller.events.unpark(target, STATUS.ABORT_REQUESTED);
    } else target.cancel(STATUS.ABORT_REQUESTED);
    yield* controller.ended.until(() => life !== controller.life || target.ended);
    command.result = 0;
    return life === controller.life ? STATUS.SUCCESS : FORGOTTEN;
  }
}

/** A feature of a namespace names it, or all; any other none, or (harmless) all. */
function checkNamespace(feature: number, nsid: number): number {
  if (feature === FEATURE.ERROR_RECOVERY) return nsid === NSID || nsid === NSID_ALL ? STATUS.SUCCESS : INVALID_NAMESPACE;
  if (nsid === 0 || nsid === NSID_ALL) return STATUS.SUCCESS;
  return nsid === NSID ? STATUS.FEATURE_NOT_NAMESPACE_SPECIFIC | DNR : INVALID_NAMESPACE;
}
