import { CoreWorld } from '/work/main/test/fixtures/core-world.js';
import { IoasidAllocator, IoasidSet } from '/work/main/iommu/core/ioasid.js';
import { KernelLog } from '/work/main/host/kernel-log.js';
import { VirtualClock } from '/work/main/sim/clock.js';
const t = () => performance.now();
{ const ids = new IoasidAllocator({log:new KernelLog(new VirtualClock())}); const set=new IoasidSet('x');
  for (let r=0;r<3;r++){ let a=t(); for(let i=1;i<=1e6;i++) ids.alloc(set,1,1e6); let b=t(); for(let i=1;i<=1e6;i++) ids.free(i); console.log('ioasid alloc ns',(b-a).toFixed(0),'free ns',(t()-b).toFixed(0)); } }
for (const workers of [1,4]) for (const groupSize of [1,16]) for (const batch of [1, 2000]) {
  const w = new CoreWorld({ traceCapacity: 4096, options: { iopfWorkers: workers } });
  const d = w.svaDevice('dev0'); const mm = w.process('app'); const page = w.malloc(mm, 1024);
  const pasid = w.run(w.core.svaBind(d, mm));
  // prefault
  w.run((function*(){ for(let i=0;i<1024;i++) yield* mm.handleFault((page+i)*4096, 3); })());
  const reports = Array.from({length:1024},(_,i)=>w.iommu.pageRequest(d,pasid,i%512,page+i,{last:(i+1)%groupSize===0}));
  for (let r=0;r<3;r++) {
    w.iommu.answers.length = 0;
    const N=320000; let i=0; const a=t();
    while(i<N){ for(let k=0;k<Math.max(batch,groupSize);k++,i++) w.iommu.faults.publish(reports[i&1023]!); w.clock.run(); w.iommu.answers.length=0; }
    if(r===2) console.log(`workers ${workers} group ${groupSize} batch ${batch}: ${((t()-a)*1e6/N).toFixed(0)} ns/request`);
  }
}
{ const w = new CoreWorld({traceCapacity:1024}); const d=w.svaDevice('dev0');
  const mms = Array.from({length:100000},(_,i)=>({id:i,name:'p',pgd:0,levels:4 as const,usesGigantic:false,users:1,exiting:false,get(){this.users++;return true;},*put(){},putAsync(){this.users--;},grab(){},drop(){},onFreed(){},registerNotifier(){},unregisterNotifier(){},*handleFault(){return 'handled' as const;}}));
  const tables=w.iommu.tables.get(d)!; (w.iommu as any).svaAttach=function*(){};
  (globalThis as any).gc?.(); const m0=process.memoryUsage().heapUsed;
  for (let k=0;k<5;k++){const a=t(); w.run((function*(){ for(let i=k*20000;i<(k+1)*20000;i++) yield* w.core.svaBind(d,mms[i] as any); })()); console.log('bind us', ((t()-a)/20).toFixed(2)); }
  w.iommu.log.length=0; (globalThis as any).gc?.(); console.log('bytes/bond', (process.memoryUsage().heapUsed-m0)/100000, tables.pasids.size); }
