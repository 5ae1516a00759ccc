import MirrorModule

// ControlAPI has its own words for people's eyes; these are the core's.
typealias CoreEvent = Event
typealias CoreDirective = Directive
typealias CoreGuest = GuestState
typealias CoreSeverity = Severity
typealias CoreStatus = MirrorStatus
