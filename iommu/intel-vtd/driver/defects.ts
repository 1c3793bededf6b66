/** Named defects of the driver, switched on by tests only: each must be caught by a test or a checker. */
export const VTD_DRIVER_DEFECTS = [
  /** Ranges are invalidated in device TLBs only. */
  'vtd-driver.skip-iotlb-flush',
  /** Device TLBs are never invalidated. */
  'vtd-driver.skip-device-tlb-flush',
  /** A PASID entry is torn down without invalidating the PASID cache. */
  'vtd-driver.skip-pasid-cache-flush',
  /** The entry of a dead process is cleared without FPD, so that its device's requests are recorded as faults. */
  'vtd-driver.log-after-exit',
  /** A bond ends while page requests of its PASID are under way. */
  'vtd-driver.skip-prq-drain',
  /** FAILURE goes out as the generic enum's 2 instead of the wire's 15. */
  'vtd-driver.generic-failure-code',
] as const;
